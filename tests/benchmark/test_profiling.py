"""Where the time goes: every node of an engine is told to which part it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunepass
from prunepass.__main__ import main
from prunepass.backends.onnx_parts import NodeOfFile, nodes_of, parts_of_values, spread
from prunepass.benchmark.profiling import profiles
from prunepass.graph.parts import BEHIND, IN_FRONT, Part
from tests.conftest import Captured
from tests.tiny_models import DEPTH, images


@pytest.fixture(scope="module", params=["onnx", "eager"])
def bundle(
    request: pytest.FixtureRequest, captured: Captured, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    program = captured("class", torch.float32)
    x = images(2, name="class", dtype=torch.float32)
    prunepass.compile(
        program, (x,), method="tome", keep=0.7, at=(0, 1), backend=request.param, folder=folder
    )
    return folder


def test_every_site_has_its_time(bundle: Path) -> None:
    found = profiles(bundle, batch=2, runs=3)
    dense, compressed = found["dense"], found["compressed"]
    assert set(dense.groups) == {"attention", "mlp", "other"}
    assert set(compressed.groups) == {"attention", "mlp", "other", "scoring", "gather"}
    layers = {f"block[{i}].{kind}" for i in range(DEPTH) for kind in ("attention", "mlp")}
    assert set(dense.sites) == {IN_FRONT, BEHIND, *layers}
    assert {"scoring", "gather"} <= set(compressed.parts()["block[0].attention"])
    for profile in (dense, compressed):
        assert sum(profile.sites.values()) == pytest.approx(profile.seconds, rel=1e-9, abs=0)
        assert sum(profile.groups.values()) == pytest.approx(profile.seconds, rel=1e-9, abs=0)
        assert all(node.seconds >= 0 for node in profile.nodes)
        assert not [n for n in profile.nodes if n.part.site == "unknown"]


def test_on_the_command_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(bundle), "--runs", "2", "--json"]) == 0
    caught = capsys.readouterr()
    data = json.loads(caught.out)
    assert data["compressed"]["groups"]["scoring"] >= 0
    assert sum(data["dense"]["groups"].values()) == pytest.approx(data["dense"]["ms"], rel=1e-9)
    assert "block[2].mlp" in caught.err
    for by in ("group", "operator"):
        assert main(["profile", str(bundle), "--runs", "1", "--by", by]) == 0
        assert "scoring" in capsys.readouterr().out
    assert main(["profile", str(bundle), "--runs", "0"]) == 2


def test_what_cannot_be_profiled(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(tmp_path)]) == 1
    assert "is not a bundle" in capsys.readouterr().err
    told = json.loads((bundle / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(told | {"backend": "aot_inductor"}))
    assert main(["profile", str(tmp_path)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "carry no labels" in lines[1]


def test_files_without_parts_are_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle / "dense" / "model.onnx"
    if not path.is_file():
        pytest.skip("an eager bundle has no ONNX file")
    import onnx

    model = onnx.load(str(path))
    assert all(node.part for node in nodes_of(model) if node.operator == "MatMul")
    for node in model.graph.node:
        del node.metadata_props[:]
    kept = path.read_bytes()
    onnx.save(model, str(path))
    try:
        assert main(["profile", str(bundle), "--runs", "1"]) == 3
        assert "compile again" in capsys.readouterr().err
    finally:
        path.write_bytes(kept)


def test_what_a_runtime_puts_in_between() -> None:
    first, second = Part("block[0].mlp", "mlp"), Part("block[1].attention", "scoring")
    nodes = [
        NodeOfFile("laid out", "Reorder", ("x",), ("x1",), None),
        NodeOfFile("a", "Fused", ("x1",), ("a",), None),
        NodeOfFile("b", "MatMul", ("a",), ("b",), None),
        NodeOfFile("back", "Reorder", ("b",), ("y",), None),
        NodeOfFile("alone", "Add", ("z",), ("w",), None),
    ]
    found = spread(nodes, {"a": first, "b": second})
    assert found == {"laid out": first, "a": first, "b": second, "back": second}
    assert parts_of_values([NodeOfFile("n", "Add", (), ("u", "v"), first)]) == {
        "u": first, "v": first
    }  # fmt: skip
