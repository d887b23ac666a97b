"""The sparse product on a GPU: what the Triton kernel is launched with, and compiled for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunepass.rules.weight_aware import top_mask

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""What the kernel computes with, and what Triton calls it; sums are of float32."""

PROCESSORS = 132
"""Multiprocessors of a GPU that is not here: an H100's or H200's."""

_WIDEST, _NARROWEST = 64, 16  # outputs of a program: rows are read in pieces of 32 bytes or more
_UNDER_WAY = 1 << 16  # bytes of the weight that a program asks for before the first ones are there


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What one program reads at once.

    Attributes:
        outputs: Outputs of a program.
        inputs: Rows of the weight that a group of warps multiplies at once, at least 16.
        groups: Groups of warps, each with rows of its own.
        stages: One more than the tiles that are under way at once.
        warps: Of 32 threads. All of these but `stages` are powers of two.
        matrices: Whether tensor cores multiply, which take numbers of 16 bits.
    """

    outputs: int
    inputs: int
    stages: int
    groups: int = 4
    warps: int = 8
    matrices: bool = True


def tile_for(inputs: int, outputs: int, width: int, processors: int = PROCESSORS) -> Tile:
    """The widest tile that leaves nearly every processor a program.

    Pieces of a row are then as long as can be, and no processor idles while others read.

    Args:
        inputs: n_in.
        outputs: n_out.
        width: Bytes of a number of the weight.
        processors: Multiprocessors of the GPU.
    """
    wide = _WIDEST
    while wide > _NARROWEST and 10 * -(-outputs // wide) < 9 * processors:
        wide //= 2
    groups = Tile.groups
    rows = max(16, min(128 // width, _power(inputs) // groups))
    deep = min(_UNDER_WAY // (groups * rows * wide * width), -(-inputs // (groups * rows)))
    return Tile(outputs=wide, inputs=rows, stages=1 + max(1, deep), matrices=width == 2)


def gated_linear_cuda(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float, rows: int
) -> Tensor:
    """`gated_linear` on the device of its tensors; `threshold` < 0 stands for none."""
    inputs, outputs = weight.shape
    flat = x.reshape(-1, inputs)
    if len(flat) > rows:
        return x @ weight
    flat_score = score.reshape(-1, inputs)
    if {x.dtype, weight.dtype, score.dtype} <= set(DTYPES):
        found = gated_rows(flat, flat_score, weight, keep, threshold)
    else:
        mask = top_mask(flat_score, keep) if threshold < 0 else flat_score > threshold
        found = (flat * mask) @ weight
    return found.reshape(*x.shape[:-1], outputs)


def gated_rows(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float, tile: Tile | None = None
) -> Tensor:
    """x [R, n_in] times the rows of an input-major weight [n_in, n_out] that matter: [R, n_out].

    Args:
        x: [R, n_in], of one of `DTYPES`, as are the others.
        score: [R, n_in], >= 0.
        weight: [n_in, n_out].
        keep: Inputs that stay for each row; of equal scores at the boundary, those of lower index.
        threshold: If >= 0, inputs whose score lies above it stay instead.
        tile: What one program reads at once; None for what fits the weight and the GPU.
    """
    from prunepass.kernels.gated_rows_triton import gated_rows as kernel

    rows, inputs = x.shape
    outputs = weight.shape[1]
    result = x.new_empty(rows, outputs)
    if not rows:
        return result
    tile = tile or tile_for(inputs, outputs, weight.element_size(), _processors(x.device))
    least = pattern_below(threshold, score.dtype) if threshold >= 0 else 0
    kernel[(-(-outputs // tile.outputs), rows)](
        x.contiguous(), score.contiguous(), weight.contiguous(),
        keep if threshold < 0 else 0, least, rows, result,
        **constants(inputs, outputs, tile), num_warps=tile.warps,
    )  # fmt: skip
    return result


def constants(inputs: int, outputs: int, tile: Tile) -> dict[str, int]:
    """What the kernel for a weight [n_in, n_out] is compiled with.

    Sizes are among them: with steps that are known a row is found without reckoning.
    """
    return {
        "inputs": inputs, "outputs": outputs, "WIDTH": _power(inputs), "OUTPUTS": tile.outputs,
        "INPUTS": tile.inputs, "GROUPS": tile.groups, "STAGES": tile.stages,
        "MATRICES": tile.matrices,
    }  # fmt: skip


def compiled(
    inputs: int, outputs: int, dtype: torch.dtype, tile: Tile, capability: tuple[int, int]
) -> Any:
    """The kernel compiled for a GPU, which need not be here: `asm["ptx"]`, `metadata`.

    Args:
        inputs: n_in.
        outputs: n_out.
        dtype: Of the weight, x, scores and results.
        tile: What one program reads at once.
        capability: Of the GPU, such as (9, 0).
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from prunepass.kernels.gated_rows_triton import gated_rows as kernel

    given = constants(inputs, outputs, tile)
    kinds = dict.fromkeys(("x", "score", "weight", "result"), f"*{DTYPES[dtype]}")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(
        kernel,
        signature=signature | dict.fromkeys(given, "constexpr"),
        constexprs=given,
        attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in kinds},
    )
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    return triton.compile(source, target=target, options={"num_warps": tile.warps})


def pattern_below(threshold: float, dtype: torch.dtype) -> int:
    """The pattern that those of all numbers of a dtype above a threshold >= 0 lie above."""
    whole = torch.int32 if dtype is torch.float32 else torch.int16
    near = torch.tensor(threshold, dtype=torch.float64).to(dtype)
    return int(near.view(whole)) - int(float(near) > threshold)


def _power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
