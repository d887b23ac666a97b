from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunepass.kernels.sparse_linear import gated_linear
from prunepass.kernels.sparse_triton import DTYPES, Tile, compiled, tile_for
from prunepass.rules.weight_aware import masked_linear, top_mask

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
PREAMBLE = """
import torch
from dataclasses import replace
from prunepass.kernels.sparse_triton import DTYPES, Tile, gated_rows, tile_for
from prunepass.rules.weight_aware import masked_linear, top_mask

torch.manual_seed(0)

def narrow(tile, dtype):
    # Interpreted, products of matrices take the bits of bfloat16 for whole numbers.
    return replace(tile, matrices=dtype is torch.float16)
"""
PRODUCTS = """
near = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}
trials = (
    (1, 200, 300, 77, None), (3, 70, 129, 33, Tile(outputs=32, inputs=16, groups=2, stages=1)),
    (1, 5, 3, 1, None), (2, 64, 64, 64, Tile(outputs=64, inputs=32, groups=1, stages=3)),
)
for dtype in DTYPES:
    for rows, inputs, outputs, keep, tile in trials:
        tile = narrow(tile or tile_for(inputs, outputs, dtype.itemsize), dtype)
        weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
        x = torch.randn(rows, inputs).to(dtype)
        stored = weight.t().contiguous()
        for threshold in (-1.0, 0.7):
            mask = top_mask(x.abs(), keep) if threshold < 0 else x.abs().double() > threshold
            right = masked_linear(x.double(), weight.double(), None, mask)
            found = gated_rows(x, x.abs(), stored, keep, threshold, tile)
            again = gated_rows(x, x.abs(), stored, keep, threshold, tile)
            assert torch.equal(found, again), "not deterministic"
            gap = (found.double() - right).abs().max() / right.abs().max().clamp_min(1e-3)
            assert gap < near[dtype], (dtype, rows, threshold, gap)
print("equal")
"""
# Times the identity a row comes out as it is where its inputs stay: the set can be read off.
SETS = """
inputs = 37
for dtype in DTYPES:
    x = (torch.randint(-4, 5, (3, inputs)) / 4).to(dtype)  # ties everywhere
    eye, tile = torch.eye(inputs, dtype=dtype), narrow(tile_for(37, 37, dtype.itemsize), dtype)
    for keep in (1, 5, 20, 36, 37):
        found = gated_rows(x, x.abs(), eye, keep, -1.0, tile)
        assert torch.equal(found, x * top_mask(x.abs(), keep)), (dtype, keep)
    for threshold in (0.0, 0.25, 0.3, 0.999, 1.0, 5e30):
        found = gated_rows(x, x.abs(), eye, 1, threshold, tile)
        assert torch.equal(found, x * (x.abs().double() > threshold)), (dtype, threshold)
# Scores of their own, and the smallest and the largest of them.
score = torch.tensor([[0.0, 1e-40, 1e-30, 3e38, float("inf"), 2.0]])
for keep, stay in ((1, [4]), (2, [3, 4]), (5, [1, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])):
    found = gated_rows(torch.ones(1, 6), score, torch.eye(6), keep, -1.0)
    assert found.nonzero()[:, 1].tolist() == stay, (keep, found)
# What is no number lies above all, whatever its sign; the answer is none then.
for dtype in DTYPES:
    tile = narrow(tile_for(6, 6, dtype.itemsize), dtype)
    score = torch.tensor([[1.0, 2.0, float("inf"), 3.0, 4.0, float("nan")]]).to(dtype)
    for signed in (score, torch.where(score.isnan(), -score, score)):
        for keep, threshold in ((1, -1.0), (1, 1e30 if dtype is torch.float32 else 6e4)):
            found = gated_rows(torch.ones(1, 6).to(dtype), signed, torch.eye(6).to(dtype), keep,
                               threshold, tile)
            assert found[0, 5] == 1, (dtype, signed, keep, threshold, found)
assert gated_rows(torch.ones(0, 6), torch.ones(0, 6), torch.eye(6), 3, -1.0).shape == (0, 6)
print("equal")
"""
# What an engine of TensorRT launches: the kernel itself, which is told how many rows pay.
ROWS = """
from prunepass.kernels.gated_rows_triton import gated_rows as kernel
from prunepass.kernels.sparse_triton import constants

tile = Tile(outputs=16, inputs=32, stages=2, matrices=False)
x, weight = torch.randn(3, 50), torch.randn(50, 40)
for rows, mask in ((2, torch.ones(3, 50)), (3, top_mask(x.abs(), 20))):
    found = torch.empty(3, 40)
    kernel[(3, 3)](x, x.abs(), weight, 20, 0, rows, found, **constants(50, 40, tile))
    assert torch.allclose(found, (x * mask) @ weight, atol=1e-5), rows
print("equal")
"""


@needs_triton
@pytest.mark.parametrize("text", [PRODUCTS, SETS, ROWS], ids=["products", "sets", "rows"])
def test_interpreted_kernel_equals_mask_and_product(text: str) -> None:
    # Triton decides when it is imported whether it interprets: this runs in a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + text], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_for_gpus_that_are_not_here(
    dtype: torch.dtype, capability: tuple[int, int], tmp_path: Path
) -> None:
    tile = tile_for(4096, 11008, dtype.itemsize)
    made = compiled(4096, 11008, dtype, tile, capability)
    ptx = made.asm["ptx"]
    # Rows of the weight come 16 bytes at a time, past the caches, while others are added up.
    assert re.search(r"cp\.async\.cg\.shared\.global .*, 0x10, ", ptx)
    assert ("mma.sync" in ptx) is (dtype is not torch.float32)
    # Two programs fit a processor of 164 KiB of shared memory, one of them one of 100 KiB.
    assert made.metadata.shared <= 80 << 10
    report = assembled(ptx, capability, tmp_path)
    assert "0 bytes spill stores, 0 bytes spill loads" in report


@needs_triton
def test_wide_inputs_compile_without_spilling(tmp_path: Path) -> None:
    made = compiled(14336, 4096, torch.bfloat16, tile_for(14336, 4096, 2), (9, 0))
    assert "0 bytes spill stores, 0 bytes spill loads" in assembled(
        made.asm["ptx"], (9, 0), tmp_path
    )


def assembled(ptx: str, capability: tuple[int, int], folder: Path) -> str:
    """What the assembler that comes with Triton says of a kernel."""
    import triton

    name = "sm_90a" if capability == (9, 0) else f"sm_{capability[0]}{capability[1]}"
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    (folder / "kernel.ptx").write_text(ptx)
    done = subprocess.run(
        [assembler, "-v", f"-arch={name}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stderr


@pytest.mark.parametrize(
    ("outputs", "wide"), [(11008, 64), (4096, 32), (28672, 64), (1024, 16), (3, 16), (1 << 20, 64)]
)
@pytest.mark.parametrize("width", [2, 4])
def test_every_processor_has_a_program_where_the_outputs_allow(
    outputs: int, wide: int, width: int
) -> None:
    tile = tile_for(4096, outputs, width)
    assert tile.outputs == wide
    assert wide == 16 or -(-outputs // wide) >= 0.9 * 132
    # So many bytes are under way at once, whatever the width.
    assert (tile.stages - 1) * tile.groups * tile.inputs * wide * width == 1 << 16


def test_few_inputs_are_one_tile() -> None:
    assert tile_for(5, 4096, 2) == Tile(outputs=32, inputs=16, stages=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("threshold", [None, 0.8])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 1100), (4096, 11008), (11008, 4096)])
def test_on_a_gpu(
    dtype: torch.dtype, rows: int, threshold: float | None, inputs: int, outputs: int
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight = (torch.randn(outputs, inputs, device="cuda") / inputs**0.5).to(dtype)
    x = torch.randn(rows, inputs, device="cuda").to(dtype)
    stored, score, keep = weight.t().contiguous(), x.abs(), inputs * 2 // 5
    found = gated_linear(x, score, stored, keep, threshold, 8)
    assert torch.equal(found, gated_linear(x, score, stored, keep, threshold, 8))
    mask = top_mask(score, keep) if threshold is None else score.double() > threshold
    right = masked_linear(x.double(), weight.double(), None, mask)
    torch.testing.assert_close(found.double(), right, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_compiled_and_captured_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight = torch.randn(1024, 2048, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1, 1024, device="cuda", dtype=torch.bfloat16)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return gated_linear(x, x.abs(), weight, 512, None, 1) * 2

    right = layer(x)
    for run in (layer, torch.compile(layer)):
        run(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run(x)
        found.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, right)
