from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_operator import FILE, has_gated_linear
from prunepass.errors import BackendError
from prunepass.kernels.sparse_linear import gated_linear

INPUTS, OUTPUTS, KEEP = 70, 1100, 30


class Gated(nn.Module):
    def __init__(self, threshold: float | None = None, rows: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(INPUTS, OUTPUTS, generator=generator))
        self.threshold, self.rows = threshold, rows

    def forward(self, x: Tensor) -> Tensor:
        return gated_linear(x, x.abs(), self.weight, KEEP, self.threshold, self.rows)


def program(module: nn.Module) -> ExportedProgram:
    x = torch.randn(2, 3, INPUTS)
    shapes = ({0: Dim("batch", min=1), 1: Dim("tokens", min=1)},)
    return torch.export.export(module.eval(), (x,), dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_operator_equals_the_program(threshold: float | None, tmp_path: Path) -> None:
    module = Gated(threshold, rows=2)
    made = program(module)
    assert has_gated_linear(made)
    engine = OnnxBackend(threads=2).build(made, tmp_path)
    assert (tmp_path / FILE).is_file()
    # One and two rows are sparse, more are ONNX Runtime's own product; any shape is taken.
    for shape in ((1, 1), (2, 1), (1, 2), (2, 3), (1, 50)):
        x = torch.randn(*shape, INPUTS, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.no_grad():
            right = module(x)
        torch.testing.assert_close(engine(x)[0], right, rtol=1e-5, atol=1e-4)


def test_equal_scores_keep_lower_indices(tmp_path: Path) -> None:
    module = Gated()
    engine = OnnxBackend().build(program(module), tmp_path)
    x = torch.ones(1, 1, INPUTS)
    right = module.weight[:KEEP].sum(0)
    torch.testing.assert_close(engine(x)[0][0, 0], right, rtol=1e-5, atol=1e-4)


def test_a_folder_without_its_operator_or_with_a_damaged_one(tmp_path: Path) -> None:
    OnnxBackend().build(program(Gated()), tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(BackendError, match=f"cannot load {FILE}"):
        OnnxBackend().load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(BackendError, match="refuses"):
        OnnxBackend().load(tmp_path)


def test_no_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = program(Gated())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="cannot build the sparse operator") as caught:
        OnnxBackend().build(made, tmp_path)
    assert "no C++ compiler" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
