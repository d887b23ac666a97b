"""A bundle compared with its program: what agrees, what differs, what cannot run and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import prunepass
from prunepass.__main__ import main
from prunepass.backends.tensorrt import TensorRTBackend, missing
from prunepass.bundle_files import write_digests
from prunepass.errors import ModelError, PlanError, UsageError
from prunepass.plans import Plan
from prunepass.verifying import telling, verify
from tests.conftest import Captured
from tests.tiny_models import images, tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified") / "bundle"
    prunepass.compile(
        tiny("class").float(), (images(2, dtype=torch.float32),), method="tome", flops=0.75,
        folder=folder, name="tiny",
    )  # fmt: skip
    return folder


def test_engines_say_and_keep_what_the_program_does(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle), "--backends", "eager,onnx,tensorrt", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["part"], r["backend"]) for r in rows] == [
        (part, name) for part in ("dense", "compressed") for name in ("eager", "onnx", "tensorrt")
    ]
    for row in rows:
        if row["backend"] == "tensorrt" and missing("tensorrt"):
            assert row["same"] is None
            assert row["why"] == missing("tensorrt")
            continue
        assert row["same"] is True
        assert row["difference"] < 1e-4
        assert row["kept"] == (1.0 if row["part"] == "compressed" else None)
        assert row["engine"] == ("bundle" if row["backend"] == "onnx" else "built")


def test_a_model_in_half_precision_is_held_to_half_precision(tmp_path: Path) -> None:
    prunepass.compile(
        tiny("class").half(), (images(2, dtype=torch.float16),), method="tome", flops=0.75,
        folder=tmp_path / "b", name="tiny",
    )  # fmt: skip
    rows = verify(tmp_path / "b", backends=("onnx",))
    assert [row.same for row in rows] == [True, True]
    assert max(row.difference or 0.0 for row in rows) > 1e-4


def test_an_engine_that_says_something_else_is_told(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundle, folder)
    shutil.copy(folder / "dense" / "model.onnx", folder / "compressed" / "model.onnx")
    with pytest.raises(ModelError, match="is damaged"):
        verify(folder, backends=("eager",))
    write_digests(folder)
    assert main(["verify", str(folder), "--backends", "onnx"]) == 1
    captured = capsys.readouterr()
    assert "DIFFERS" in captured.out
    assert "compressed in onnx" in captured.err
    assert len(captured.err.strip().splitlines()) == 3


def test_what_cannot_be_compared(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown backend"):
        verify(bundle, backends=("onix",))
    folder = tmp_path / "b"
    shutil.copytree(bundle, folder)
    shutil.rmtree(folder / "program")
    write_digests(folder)
    with pytest.raises(ModelError, match="holds no program") as caught:
        verify(folder)
    assert len(str(caught.value).splitlines()) == 3


def test_programs_tell_what_they_keep(captured: Captured) -> None:
    program = captured("class", torch.float32)
    plan = prunepass.plan(program, method="tome", flops=0.75)
    told, chooses = telling(program, plan)
    x = images(3, dtype=torch.float32)
    logits, *kept = told.module(check_guards=False)(x)
    smaller = prunepass.apply_plan(program, plan)
    torch.testing.assert_close(logits, smaller.module(check_guards=False)(x))
    assert len(kept) == chooses > 0
    for tokens in kept:
        assert bool((tokens.diff(dim=1) > 0).all())
    with pytest.raises(PlanError, match="another program"):
        telling(program, Plan(method="tome", steps=(), fingerprint="another"))


@pytest.mark.skipif(missing("tensorrt") is None, reason="TensorRT is here")
def test_a_bundle_for_tensorrt_is_written_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    made = prunepass.compile(
        tiny("class").float(), (images(2, dtype=torch.float32),), method="tome", flops=0.75,
        folder=folder, name="tiny", backend=TensorRTBackend(),
    )  # fmt: skip
    assert made.report.difference < 1e-4
    assert main(["verify", str(folder), "--backends", "tensorrt"]) == 1
    assert "cannot run: the package tensorrt" in capsys.readouterr().out
    (folder / "dense" / "model.onnx").write_bytes(b"exchanged")
    with pytest.raises(ModelError, match="is damaged"):
        verify(folder, backends=("eager",))
