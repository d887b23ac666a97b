"""Reduced programs in ONNX Runtime: the same numbers, the same tokens, static shapes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from prunepass.backends.onnx import OnnxBackend
from prunepass.graph.edit import seal
from prunepass.plans import Step
from tests.conftest import Captured
from tests.kept_indices import with_kept
from tests.steps import step
from tests.tiny_models import images

CASES = {
    "mean": [
        step("block[0].attention", "tome", 13, "merge"),
        step("block[2].attention", "zero-tprune", 8, iterations=3, similar=2),
    ],
    "rotary": [
        step("block[0].output", "attention-weighted", 17, "merge"),
        step("block[1].attention", "random", 9, seed=3),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_g8_g9_engine_equals_program(captured: Captured, tmp_path: Path, name: str) -> None:
    steps: list[Step] = CASES[name]
    program = captured(name, torch.float32)
    module = with_kept(program, steps)
    engine = OnnxBackend(threads=1).build(seal(module, program), tmp_path)
    for batch in (1, 3, 5):
        x = images(batch, seed=30 + batch, dtype=torch.float32)
        expected, *kept = module(x)
        result, *same = engine(x)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert len(same) == len(steps)
        for found, wanted in zip(same, kept, strict=True):
            assert torch.equal(found, wanted)
    _only_the_batch_is_dynamic(tmp_path / "model.onnx")


def _only_the_batch_is_dynamic(path: Path) -> None:
    graph = onnx.load(str(path)).graph
    (batch,) = {
        d.dim_param
        for value in graph.input
        for d in value.type.tensor_type.shape.dim
        if d.dim_param
    }
    checked = 0
    for value in (*graph.value_info, *graph.output):
        if not value.type.tensor_type.HasField("shape"):
            continue
        checked += 1
        for dim in value.type.tensor_type.shape.dim:
            assert dim.dim_value > 0 or batch in dim.dim_param, (value.name, dim)
    assert checked > 100
