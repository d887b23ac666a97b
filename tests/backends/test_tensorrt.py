"""TensorRT without TensorRT: its ONNX file, command lines, versions, refusals. With it: engines."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

from prunepass.backends import tensorrt_command
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.tensorrt import (
    GOLDEN,
    MODEL,
    RECORD,
    TensorRTBackend,
    check_golden,
    engine_key,
    missing,
    moved,
    onnx_engine,
)
from prunepass.backends.tensorrt_engine import TensorRTEngine, UnbuiltEngine
from prunepass.backends.tensorrt_settings import Profile, TensorRTSettings, profiles
from prunepass.backends.tensorrt_versions import INTERFACES, check, interface, network_flags
from prunepass.errors import BackendError, UsageError
from tests.conftest import Captured
from tests.tiny_models import images

ABSENT = missing("tensorrt")
without = pytest.mark.skipif(ABSENT is None, reason="TensorRT is here")
IMAGES = Profile(name="images", least=(1, 3, 24, 30), usual=(8, 3, 24, 30), most=(64, 3, 24, 30))


@pytest.fixture(scope="module")
def half(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder built in fp16."""
    folder = tmp_path_factory.mktemp("half")
    program = captured("class", torch.float32)
    TensorRTBackend(TensorRTSettings(precision="fp16", cache=str(folder))).build(program, folder)
    return folder


@without
def test_without_tensorrt_a_bundle_says_how_its_engine_is_built(half: Path) -> None:
    engine = TensorRTBackend().load(half)
    assert isinstance(engine, UnbuiltEngine)
    with pytest.raises(BackendError, match="not built yet") as caught:
        engine(images(1, dtype=torch.float32))
    assert caught.value.found == ABSENT
    assert len(str(caught.value).splitlines()) == 3
    record = json.loads((half / RECORD).read_text())
    assert record["built"] is False
    assert record["fingerprint"] is None
    assert record["settings"]["precision"] == "fp16"
    text = (half / tensorrt_command.FILE).read_text()
    assert text.count("trtexec --onnx=model.onnx --saveEngine=model.plan") == len(INTERFACES)
    assert sorted(p.name for p in half.iterdir()) == [
        "engine.json", "golden.safetensors", "model.onnx", "trtexec.txt"
    ]  # fmt: skip


def test_the_file_has_half_products_and_runs(captured: Captured, half: Path) -> None:
    model = onnx.load(str(half / MODEL))
    casts = [n.attribute[0].i for n in model.graph.node if n.op_type == "Cast"]
    assert Counter(casts)[onnx.TensorProto.FLOAT16] > 10
    x = images(2, dtype=torch.float32)
    expected = captured("class", torch.float32).module(check_guards=False)(x)
    (found,) = onnx_engine(half)(x)
    worst = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-5 < worst < 2e-2
    assert check_golden(onnx_engine(half), half / GOLDEN, 2e-2) < 2e-2


def test_an_engine_that_says_something_else_is_not_used(half: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="something else than its model"):
        check_golden(onnx_engine(half), half / GOLDEN, 1e-9)
    (tmp_path / GOLDEN).write_bytes((half / GOLDEN).read_bytes()[:99])
    for path in (tmp_path / GOLDEN, tmp_path / "none"):
        with pytest.raises(BackendError, match="cannot read"):
            check_golden(onnx_engine(half), path, 1.0)


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", '{"schema": 2}', '{"schema": 1, "settings": {"opset": "x", "evil": 1}}',
     '{"schema": 1, "settings": {"precision": "fp8"}, "fingerprint": null}',
     '{"schema": 1, "settings": {}, "fingerprint": "mine"}'],
)  # fmt: skip
def test_damaged_records(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(BackendError, match=r"cannot load engine.json"):
        TensorRTBackend().load(tmp_path)


def test_settings() -> None:
    made = TensorRTSettings(precision="bf16", batches=(2, 4, 4), cache="/c")
    data = json.loads(json.dumps(made.to_dict()))
    assert TensorRTSettings.from_dict(data, cache="/c") == made
    assert "cache" not in data
    for wrong in (
        {"precision": "fp8"}, {"via": "air"}, {"batches": (8, 1, 64)}, {"workspace": 0},
        {"level": 6},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            TensorRTSettings(**wrong)  # type: ignore[arg-type]


def test_profiles_are_of_free_axes(half: Path) -> None:
    assert profiles(half / MODEL, TensorRTSettings()) == (IMAGES,)


def test_profiles_tell_a_batch_from_lengths_and_images(tmp_path: Path) -> None:
    shapes = {"tokens": ["b", "t"], "image_positions": ["b", "i", 16], "past": ["b", 2, "p", 8],
              "places": [3, "b", "t"], "dropped": [4]}  # fmt: skip
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, sizes)
        for name, sizes in shapes.items()
    ]
    made = onnx.helper.make_model(onnx.helper.make_graph([], "inputs", values, []))
    onnx.save(made, str(tmp_path / MODEL))
    settings = TensorRTSettings(batches=(1, 2, 16), lengths=(1, 30, 99))
    found = {one.name: one for one in profiles(tmp_path / MODEL, settings)}
    assert [one.usual for one in found.values()] == [
        (2, 30), (2, 1, 16), (2, 2, 30, 8), (3, 2, 30), (4,)
    ]  # fmt: skip
    assert found["image_positions"].most == (16, 2, 16)
    assert found["past"].most == (16, 2, 99, 8)
    assert not found["dropped"].free


COMMANDS = {
    "8.5.3": "--buildOnly --minShapes=images:1x3x24x30 --optShapes=images:8x3x24x30 "
    "--maxShapes=images:64x3x24x30 --memPoolSize=workspace:4096 --noTF32 --fp16",
    "8.6.1": "--skipInference --minShapes=images:1x3x24x30 --optShapes=images:8x3x24x30 "
    "--maxShapes=images:64x3x24x30 --memPoolSize=workspace:4096 --builderOptimizationLevel=3 "
    "--noTF32 --fp16",
    "10.13.0": "--skipInference --minShapes=images:1x3x24x30 --optShapes=images:8x3x24x30 "
    "--maxShapes=images:64x3x24x30 --memPoolSize=workspace:4096 --builderOptimizationLevel=3 "
    "--noTF32 --stronglyTyped",
    "11.4.1": "--skipInference --minShapes=images:1x3x24x30 --optShapes=images:8x3x24x30 "
    "--maxShapes=images:64x3x24x30 --memPoolSize=workspace:4096 --builderOptimizationLevel=3 "
    "--noTF32",
}


@pytest.mark.parametrize("version", list(COMMANDS))
def test_command_lines(version: str) -> None:
    settings = TensorRTSettings(precision="fp16")
    words = tensorrt_command.command(
        settings, [IMAGES], interface(version), model="m.onnx", engine="m.plan"
    )
    assert shlex.join(words) == f"trtexec --onnx=m.onnx --saveEngine=m.plan {COMMANDS[version]}"


def test_command_lines_of_versions_that_can_build_it_only() -> None:
    fixed = dataclasses.replace(IMAGES, least=IMAGES.most)
    told = tensorrt_command.commands(
        TensorRTSettings(opset=20, precision="bf16"), [fixed], model="m", engine="e"
    )
    assert told.count("trtexec") == 2
    assert "Shapes" not in told
    assert "TensorRT 10.0 to before 11.0:" in told


def test_versions() -> None:
    assert [interface(v).version for v in ("8.5.1", "8.6.1", "9.3.0", "10.14.1", "12.0")] == [
        (8, 5), (8, 6), (9, 0), (10, 0), (11, 0)
    ]  # fmt: skip
    for version in ("8.4.3", "7.2", "dev"):
        with pytest.raises(BackendError, match="not supported"):
            interface(version)
    with pytest.raises(BackendError, match="no bfloat16"):
        check(interface("8.6"), TensorRTSettings(precision="bf16"))
    with pytest.raises(BackendError, match="no ONNX of opset 20"):
        check(interface("8.6"), TensorRTSettings(opset=20))
    flags = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    module = SimpleNamespace(NetworkDefinitionCreationFlag=flags)
    assert [network_flags(module, one) for one in INTERFACES] == [1, 1, 1, 2, 0]


def test_engines_are_kept_by_all_they_depend_on(half: Path, tmp_path: Path) -> None:
    here, there = {"gpu": "a", "tensorrt": "10", "driver": "1"}, {"gpu": "b", "tensorrt": "10"}
    assert moved(None, here) == "it was written where TensorRT was missing"
    assert moved(there, here) == "gpu b -> a, driver unknown -> 1"
    settings = TensorRTSettings()
    (tmp_path / MODEL).write_bytes(b"another")
    keys = {
        engine_key(half, settings, here), engine_key(half, settings, there),
        engine_key(half, TensorRTSettings(batches=(1, 1, 1)), here),
        engine_key(tmp_path, settings, here),
    }  # fmt: skip
    assert len(keys) == 4
    assert engine_key(half, TensorRTSettings(cache="/x"), here) in keys


@without
def test_what_is_missing_is_one_sentence() -> None:
    for package in ("tensorrt", "torch_tensorrt"):
        why = missing(package)
        assert why is not None
        assert why.startswith(("the package", "TensorRT needs"))
    backend = TensorRTBackend(TensorRTSettings(via="torch"))
    assert backend.unavailable() == missing("torch_tensorrt")
    assert TensorRTBackend().unavailable() == OnnxBackend().unavailable()
    assert TensorRTBackend(TensorRTSettings(precision="bf16")).unavailable() == ABSENT


@pytest.mark.tensorrt
@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("via", ["onnx", "torch"])
def test_an_engine_is_its_program(
    captured: Captured, tmp_path: Path, precision: str, via: str
) -> None:
    if via == "torch" and (why := missing("torch_tensorrt")):
        pytest.skip(why)
    settings = TensorRTSettings(precision=precision, via=via, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    program = captured("class", torch.float32)
    engine = TensorRTBackend(settings).build(program, tmp_path)
    assert isinstance(engine, TensorRTEngine)
    assert check_golden(engine, tmp_path / GOLDEN, engine.tolerance) <= engine.tolerance
    for batch in (1, 8):
        x = images(batch, dtype=torch.float32)
        expected = program.module(check_guards=False)(x)
        torch.testing.assert_close(
            engine(x)[0], expected, rtol=engine.tolerance, atol=engine.tolerance * 10
        )


@pytest.mark.tensorrt
@pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))
def test_an_engine_of_another_machine_is_built_anew(captured: Captured, tmp_path: Path) -> None:
    settings = TensorRTSettings(cache=str(tmp_path / "cache"))
    TensorRTBackend(settings).build(captured("class", torch.float32), tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    record["fingerprint"]["gpu"] = "another"
    (tmp_path / RECORD).write_text(json.dumps(record))
    engine = TensorRTBackend(settings).load(tmp_path)
    assert engine.path is not None
    assert engine.path.parent == tmp_path / "cache"
    assert TensorRTBackend(settings).load(tmp_path).path == engine.path
