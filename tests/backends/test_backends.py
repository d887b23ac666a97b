"""Backends: what is built runs, is found again in its folder, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunepass.backends.aot_inductor import AotInductorBackend
from prunepass.backends.eager import EagerBackend
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.protocol import Engine
from prunepass.backends.table import BACKENDS, backend
from prunepass.errors import BackendError, UsageError
from tests.conftest import Captured
from tests.tiny_models import images

FILES = {"onnx": "model.onnx", "eager": "model.pt2", "aot_inductor": "model.pt2"}
WHERE = [
    "onnx",
    "eager",
    pytest.param("aot_inductor", marks=pytest.mark.slow),
]


def agrees(engine: Engine, captured: Captured, batch: int) -> None:
    x = images(batch, seed=batch, dtype=torch.float32)
    expected = captured("class", torch.float32).module(check_guards=False)(x)
    (found,) = engine(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WHERE)
def test_built_and_loaded_engines_equal_the_program(
    captured: Captured, tmp_path: Path, name: str
) -> None:
    chosen = backend(name)
    reason = chosen.unavailable()
    if reason:
        pytest.skip(reason)
    assert chosen.name == name
    built = chosen.build(captured("class", torch.float32), tmp_path)
    loaded = chosen.load(tmp_path)
    assert built.path == loaded.path == tmp_path / FILES[name]
    for batch in (1, 2, 5):
        agrees(built, captured, batch)
        agrees(loaded, captured, batch)
    if name == "onnx":
        with pytest.raises(BackendError, match="wrong number of inputs"):
            loaded()


@pytest.mark.parametrize("chosen", [OnnxBackend(), EagerBackend(), AotInductorBackend()])
def test_missing_and_damaged_files(
    tmp_path: Path, chosen: OnnxBackend | EagerBackend | AotInductorBackend
) -> None:
    for text in (None, b"", b"no model at all"):
        if text is not None:
            (tmp_path / FILES[chosen.name]).write_bytes(text)
        with pytest.raises(BackendError) as caught:
            chosen.load(tmp_path)
        assert caught.value.found
        assert caught.value.fix
        assert caught.value.exit_code == 3


def test_settings_reach_the_backend() -> None:
    assert backend("onnx", threads=2, opset=18) == OnnxBackend(threads=2, opset=18)
    assert set(BACKENDS) == {*FILES, "tensorrt"}


def test_an_unknown_backend_lists_the_nearest_first() -> None:
    with pytest.raises(UsageError, match="unknown backend 'onx'") as caught:
        backend("onx")
    assert caught.value.fix is not None
    assert caught.value.fix.startswith("one of onnx, ")
