"""Export without the exporter's detour: used where it can be, left where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.backends import onnx
from prunepass.backends.onnx import OnnxBackend
from prunepass.graph.text import text
from tests.conftest import Captured


class Known(nn.Module):
    """Operations that the exporter translates as they are, with a cast among them."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(torch.float32).matmul(x.transpose(1, 2)).softmax(dim=-1)


class Plain(nn.Module):
    """Operations that we translate since the exporter does not."""

    def forward(self, x: Tensor) -> Tensor:
        large, positive, many = x.abs() > 0.5, x > 0, (4 * x).to(torch.int64)
        chosen = (large & positive) | (1 - x > 1.5)
        return torch.where(chosen, torch.rsub(x, 2, alpha=3), (many & many.abs() | many.neg()) - x)


class InPlace(nn.Module):
    """Written in place: only a decomposed program is free of that."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 1:] = 2.0
        return y


class Unknown(nn.Module):
    """Operations that have no translation of their own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.log_ndtr(x) + torch.special.entr(x.sigmoid())


@pytest.mark.parametrize("module", [Known, Plain, InPlace, Unknown])
def test_the_engine_is_the_program(
    module: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 4, 5)
    program = torch.export.export(module(), (x,), strict=False)
    before, decomposed = text(program), []
    original = ExportedProgram.run_decompositions

    def watched(self: ExportedProgram, *args: Any, **kwargs: Any) -> ExportedProgram:
        decomposed.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", watched)
    engine = OnnxBackend().build(program, tmp_path)
    torch.testing.assert_close(engine(x)[0], module()(x), rtol=1e-5, atol=1e-5)
    assert bool(decomposed) == (module in (InPlace, Unknown))
    assert text(program) == before


def test_a_rewritten_program_takes_the_short_way(
    captured: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prunepass

    program = captured("class", torch.float32)
    plan = prunepass.plan(program, method="weighted-merge", flops=0.707)
    smaller = prunepass.apply_plan(program, plan)

    def refuse(*_: Any, **__: Any) -> ExportedProgram:
        raise AssertionError("decomposed")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", refuse)
    OnnxBackend().build(smaller, tmp_path)


def test_large_weights_lie_beside_the_file(
    captured: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = captured("class", torch.float32)
    x = torch.randn(2, *program.example_inputs[0][0].shape[1:])
    small = OnnxBackend().build(program, tmp_path)(x)[0]
    assert not (tmp_path / "model.onnx.data").exists()
    monkeypatch.setattr(onnx, "_SINGLE_FILE", 100)
    (tmp_path / "moved").mkdir()
    OnnxBackend().build(program, tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "model.onnx.data").stat().st_size > 1000
    assert torch.equal(OnnxBackend().load(tmp_path / "elsewhere")(x)[0], small)
