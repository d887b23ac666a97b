"""The sparse product on a GPU, in Triton: float16 or bfloat16, sums in float32.

The inputs that stay are split among programs as outputs are, since one vector alone does not fill a
GPU; what each of them summed is added in a fixed order afterwards, so results do not change from
run to run.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

OUTPUTS = 128  # outputs of one program
INPUTS = 32  # rows of the weight that it reads at once
SPLITS = 8  # programs that share one block of outputs


def gated_linear_cuda(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float, rows: int
) -> Tensor:
    """`gated_linear` on the device of its tensors; `threshold` < 0 stands for none."""
    inputs, outputs = weight.shape
    flat = x.reshape(-1, inputs)
    if len(flat) > rows:
        return x @ weight
    return gated_rows(flat, score.reshape(-1, inputs), weight, keep, threshold).reshape(
        *x.shape[:-1], outputs
    )


def gated_rows(x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float) -> Tensor:
    """x [R, n_in] times the rows of an input-major weight [n_in, n_out] that matter: [R, n_out].

    Args:
        x: [R, n_in].
        score: [R, n_in], >= 0.
        weight: [n_in, n_out].
        keep: Inputs that stay for each row.
        threshold: If >= 0, inputs whose score lies above it stay instead.
    """
    import triton

    rows = len(x)
    outputs = weight.shape[1]
    chosen = threshold < 0
    if chosen:
        index = score.topk(keep, dim=1).indices.to(torch.int32).sort(dim=1).values.contiguous()
        value = x.gather(1, index.long()).contiguous()
    else:
        value = torch.where(score > threshold, x, torch.zeros_like(x)).contiguous()
        index = value  # not read
    count = value.shape[1]
    blocks = triton.cdiv(outputs, OUTPUTS)
    part = INPUTS * triton.cdiv(triton.cdiv(count, SPLITS), INPUTS)
    splits = triton.cdiv(count, part)
    sums = torch.empty(splits, rows, outputs, dtype=torch.float32, device=x.device)
    _kernel()[(blocks, splits, rows)](
        value, index, weight, sums, count, outputs, rows, part,
        CHOSEN=chosen, OUTPUTS=OUTPUTS, INPUTS=INPUTS,
    )  # fmt: skip
    return sums.sum(0).to(x.dtype)


@functools.cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def kernel(  # type: ignore[no-untyped-def]
        value, index, weight, sums, count, outputs, rows, part,
        CHOSEN: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    ):  # fmt: skip
        block, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        column = block * OUTPUTS + tl.arange(0, OUTPUTS)
        inside = column < outputs
        total = tl.zeros((OUTPUTS,), dtype=tl.float32)
        for start in range(split * part, min((split + 1) * part, count), INPUTS):
            place = start + tl.arange(0, INPUTS)
            there = place < count
            factor = tl.load(value + row * count + place, mask=there, other=0.0).to(tl.float32)
            if CHOSEN:
                source = tl.load(index + row * count + place, mask=there, other=0)
            else:
                # A row whose input does not matter is not loaded.
                source = place
                there = there & (factor != 0.0)
            read = tl.load(
                weight + source[:, None].to(tl.int64) * outputs + column[None, :],
                mask=there[:, None] & inside[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            total += tl.sum(factor[:, None] * read, axis=0)
        tl.store(sums + (split * rows + row) * outputs + column, total, mask=inside)

    return kernel
