"""The plugin of TensorRT, but for its registration, which needs TensorRT."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

from prunepass.backends.tensorrt_plugin import MOST_SHARED, has_sparse_products, launch
from prunepass.kernels.sparse_linear import gated_linear
from prunepass.kernels.sparse_triton import DTYPES

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(4096, 11008), (11008, 4096), (64, 100)])
def test_kernel_fits_what_tensorrt_launches(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    one = launch(
        inputs, outputs, dtype, keep=inputs // 2, threshold=-1.0, rows=1, capability=(9, 0)
    )
    assert one.shared <= MOST_SHARED
    assert one.numbers == (inputs // 2, 0, 1)
    width = re.search(r"\.reqntid (\d+)", one.ptx)
    assert width is not None
    assert one.threads == int(width.group(1))
    # Pointers of the inputs, whole numbers, the pointer of the output.
    entry = re.search(rf"\.entry {one.kernel}\((.*?)\)", one.ptx, re.DOTALL)
    assert entry is not None
    kinds = re.findall(r"\.param \.(\w+)", entry.group(1))
    assert kinds[:7] == ["u64", "u64", "u64", "u32", "u32", "u32", "u64"]
    # What Triton adds behind them is not read.
    assert not re.findall(rf"ld\.param.*{one.kernel}_param_[789]", one.ptx)


@needs_triton
def test_a_threshold_is_a_pattern_of_bits() -> None:
    one = launch(64, 64, torch.float32, keep=9, threshold=1.0, rows=2, capability=(8, 0))
    assert one.numbers == (0, 0x3F800000, 2)


def test_programs_that_need_it_are_told_from_others() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.weight, self.sparse = torch.nn.Parameter(torch.randn(8, 8)), sparse

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gated_linear(x, x.abs(), self.weight, 3, None, 1) if self.sparse else x + 1

    for sparse in (True, False):
        program = torch.export.export(Layer(sparse).eval(), (torch.randn(1, 8),))
        assert has_sparse_products(program) is sparse


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_inside_an_engine() -> None:
    torch_tensorrt = pytest.importorskip("torch_tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from prunepass.backends.tensorrt_plugin import register

    register()
    weight = torch.randn(512, 1024, device="cuda", dtype=torch.float16)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return gated_linear(x, x.abs(), self.weight, 200, None, 1)

    x = torch.randn(1, 512, device="cuda", dtype=torch.float16)
    program = torch.export.export(Layer().eval(), (x,))
    engine = torch_tensorrt.dynamo.compile(
        program, arg_inputs=[x], require_full_compilation=True, min_block_size=1
    )
    torch.testing.assert_close(engine(x), Layer()(x), rtol=1e-2, atol=1e-2)
