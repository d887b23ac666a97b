"""A sparse product in ONNX's own operators says what the compiled one says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_topk import LARGEST_K
from prunepass.kernels.sparse_linear import gated_linear

SHAPES = ((1, 1), (2, 1), (1, 2), (2, 3))


class Gated(nn.Module):
    def __init__(self, inputs: int, keep: int, threshold: float | None, rows: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(inputs)
        self.weight = nn.Parameter(torch.randn(inputs, 20, generator=draw))
        self.keep, self.threshold, self.rows = keep, threshold, rows

    def forward(self, x: Tensor) -> Tensor:
        return gated_linear(x, x.abs(), self.weight, self.keep, self.threshold, self.rows)


CASES = {
    "the kept are ranked": (70, 30, None, 1),
    "the others are ranked": (70, 60, None, 1),
    "rows that differ": (70, 30, None, 2),
    "a threshold": (70, 1, 0.6, 1),
    "never sparse": (70, 30, None, 0),
    "too many to rank": (2 * LARGEST_K + 300, LARGEST_K + 100, None, 1),
}


@pytest.mark.parametrize("name", list(CASES))
def test_it_is_the_product_over_the_inputs_that_stay(name: str, tmp_path: Path) -> None:
    inputs, *_ = CASES[name]
    module = Gated(*CASES[name]).eval()
    shapes = ({0: Dim("batch", min=1), 1: Dim("tokens", min=1)},)
    x = torch.randn(2, 3, inputs)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
    engine = OnnxBackend(threads=1, opset=17, target="tensorrt").build(program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for shape in SHAPES:
        x = torch.randn(*shape, inputs, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.no_grad():
            right = module(x)
        torch.testing.assert_close(engine(x)[0], right, rtol=1e-4, atol=1e-5 * inputs)
    found = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    ranked = name.endswith("ranked") or name == "rows that differ"
    assert found["TopK"] == (1 if ranked else 0)
    assert found["MatMul"] == 1


def test_equal_scores_at_the_boundary_all_stay(tmp_path: Path) -> None:
    module = Gated(70, 30, None, 1).eval()
    program = torch.export.export(module, (torch.randn(1, 1, 70),), strict=False)
    engine = OnnxBackend(threads=1, portable=True).build(program, tmp_path)
    found = engine(torch.ones(1, 1, 70))[0][0, 0]
    torch.testing.assert_close(found, module.weight.detach().sum(0), rtol=1e-5, atol=1e-4)
