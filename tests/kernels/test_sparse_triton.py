from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunepass.kernels.sparse_linear import gated_linear
from prunepass.rules.weight_aware import masked_linear, top_mask

ROOT = Path(__file__).resolve().parents[2]
# Triton decides when it is imported whether it interprets, so this runs in a process of its own.
INTERPRETED = """
import torch
from prunepass.kernels.sparse_triton import gated_rows
from prunepass.rules.weight_aware import masked_linear, top_mask

torch.manual_seed(0)
for dtype, near in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2), (torch.float32, 1e-6)):
    for rows, inputs, outputs, keep in ((1, 200, 300, 77), (8, 70, 129, 33), (1, 5, 3, 1)):
        weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
        # Whole numbers up to 256 are exact in bfloat16: no two scores are equal.
        x = torch.stack([torch.randperm(inputs) + 1.0 for _ in range(rows)]) / 128
        x = (x * (torch.randint(0, 2, x.shape) * 2 - 1)).to(dtype)
        stored = weight.t().contiguous()
        for threshold in (-1.0, 0.7):
            mask = top_mask(x.abs(), keep) if threshold < 0 else x.abs() > threshold
            right = masked_linear(x.double(), weight.double(), None, mask)
            found = gated_rows(x, x.abs(), stored, keep, threshold)
            again = gated_rows(x, x.abs(), stored, keep, threshold)
            assert torch.equal(found, again), "not deterministic"
            gap = (found.double() - right).abs().max() / right.abs().max().clamp_min(1e-3)
            assert gap < near, (dtype, rows, threshold, gap)
print("equal")
"""


def test_interpreted_kernel_equals_mask_and_product() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8])
def test_on_a_gpu(dtype: torch.dtype, rows: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight = (torch.randn(1100, 512, device="cuda") / 512**0.5).to(dtype)
    x = torch.randn(rows, 512, device="cuda").to(dtype)
    score = x.abs() + torch.arange(512, device="cuda") * 1e-6  # no ties
    found = gated_linear(x, score, weight.t().contiguous(), 200, None, 8)
    right = masked_linear(x.double(), weight.double(), None, top_mask(score, 200))
    torch.testing.assert_close(found.double(), right, rtol=2e-2, atol=2e-2)
