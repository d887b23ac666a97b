"""The doctor stands before a build: what would fail does not get there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import prunepass
from prunepass.doctor.before_building import check, one_line
from prunepass.errors import UnsupportedGraph
from tests.conftest import Captured
from tests.doctor.graphs import EXAMPLES


class Averaged(nn.Module):
    """A merge by mean, as it is often written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.arange(9).div(2, rounding_mode="floor").expand(x.shape[0], 9)
        return x[:, :5].scatter_reduce(1, index, x, "mean")


def test_a_mean_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    program = prunepass.capture(Averaged().eval(), (torch.randn(2, 9),))
    with pytest.raises(UnsupportedGraph, match=r"scatter_reduce .*silently wrong") as error:
        prunepass.build(program, backend="onnx", folder=tmp_path / "onnx")
    assert len(str(error.value).splitlines()) == 3
    assert "sum and count" in str(error.value)
    assert list((tmp_path / "onnx").iterdir()) == []
    prunepass.build(program, backend="eager", folder=tmp_path / "eager")  # where a mean is one


def test_what_is_slow_is_told_and_built(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(EXAMPLES["ort-scan"].bad().SerializeToString())
    (told,) = check(path, ("onnxruntime==1.31",))
    assert not told.blocking
    assert one_line(told).startswith("onnxruntime==1.31 slow: ")


def test_what_fails_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(EXAMPLES["ort-kernel-type"].bad().SerializeToString())
    with pytest.raises(UnsupportedGraph, match=r"fails on onnxruntime==1\.31") as error:
        check(path, ("onnxruntime==1.31",))
    assert error.value.exit_code == 1


def test_what_is_made_here_is_not_accused(captured: Captured, tmp_path: Path) -> None:
    """A reduced model in the three newest ONNX Runtimes, TensorRT 10 and 11, and on the way."""
    program = captured("class", torch.float32)
    made = prunepass.plan(program, method="tome", flops=0.8)
    smaller = prunepass.apply_plan(program, made)
    engine = prunepass.build(smaller, backend="onnx", folder=tmp_path)
    assert engine.path is not None
    targets = [f"onnxruntime==1.{minor}" for minor in (29, 30, 31)] + [
        "tensorrt==10",
        "tensorrt==11",
    ]
    assert prunepass.examine(tmp_path, targets=targets) == ()
    assert prunepass.examine(smaller, targets=("onnxscript",)) == ()
