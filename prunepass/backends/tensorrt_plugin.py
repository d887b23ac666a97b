"""The sparse product inside engines that torch-tensorrt builds, as an ahead-of-time plugin.

The Triton kernel is compiled for this machine's GPU and put into the engine, which then launches it
without Python. No machine with TensorRT was at hand: what is tested is all but the registration,
see `launch`.

Source: NVIDIA's TensorRT Python API reference (tensorrt.plugin: register, aot_impl,
KernelLaunchParams, SymIntExprs); torch-tensorrt, "Automatically Generate a TensorRT AOT Plugin".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.export import ExportedProgram

from prunepass.errors import BackendError
from prunepass.kernels.sparse_linear import GATED_LINEAR
from prunepass.kernels.sparse_triton import Tile, compiled, pattern_below, tile_for

NAME = "prunepass::gated_linear"
MOST_SHARED = 48 << 10
"""Bytes of shared memory that a plugin's kernel may have: TensorRT asks for no more."""
_KINDS = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}
"""How TensorRT calls what the kernel computes with."""


@dataclass(frozen=True)
class Launch:
    """How an engine launches the kernel of one layer.

    Attributes:
        kernel: Its name.
        ptx: Its code.
        blocks: Programs along the outputs; along the rows there is one each.
        threads: Of a program.
        shared: Bytes of shared memory of a program.
        numbers: What it is given between inputs and output.
    """

    kernel: str
    ptx: str
    blocks: int
    threads: int
    shared: int
    numbers: tuple[int, int, int]


def launch(
    inputs: int, outputs: int, dtype: torch.dtype, *, keep: int, threshold: float, rows: int,
    capability: tuple[int, int],
) -> Launch:  # fmt: skip
    """How the kernel of a layer is launched on a GPU.

    Args:
        inputs: n_in.
        outputs: n_out.
        dtype: Of weight, x and scores.
        keep: Inputs that stay.
        threshold: If >= 0, inputs whose score lies above it stay instead.
        rows: Where x has more rows than this, all of them stay.
        capability: Of the GPU, such as (9, 0).

    Raises:
        BackendError: The kernel does not fit what TensorRT launches.
    """
    made = compiled(inputs, outputs, dtype, tile := _fitting(inputs, outputs, dtype), capability)
    if made.metadata.shared > MOST_SHARED or getattr(made.metadata, "global_scratch_size", 0):
        raise BackendError(
            "TensorRT cannot launch the sparse product",
            found=f"{made.metadata.shared} bytes of shared memory, {MOST_SHARED} are the most",
            fix="--via onnx, where the product is dense",
        )
    least = pattern_below(threshold, dtype) if threshold >= 0 else 0
    return Launch(
        made.metadata.name, made.asm["ptx"], -(-outputs // tile.outputs), 32 * tile.warps,
        made.metadata.shared, (keep if threshold < 0 else 0, least, rows),
    )  # fmt: skip


def has_sparse_products(program: ExportedProgram) -> bool:
    """Whether a program reads part of a weight anywhere."""
    return any(node.target is GATED_LINEAR for node in program.graph.nodes)


@functools.cache
def register() -> None:
    """Tells TensorRT and torch-tensorrt what the operator of a sparse product is."""
    import tensorrt.plugin as trtp
    from torch_tensorrt.dynamo.conversion import plugins

    capability = torch.cuda.get_device_capability()
    plugins.generate_plugin(NAME)

    def built(x: Any, score: Any, weight: Any, keep: Any, threshold: Any, rows: Any, outputs: Any,
              tactic: Any) -> Any:  # fmt: skip
        n_in, n_out = (int(size) for size in weight.shape)
        one = launch(
            n_in, n_out, _KINDS[weight.dtype.name], keep=int(_number(keep)),
            threshold=_number(threshold), rows=int(_number(rows)), capability=capability,
        )  # fmt: skip
        how = trtp.KernelLaunchParams()
        how.grid_x, how.grid_y = one.blocks, trtp.cdiv(x.shape_expr.numel(), n_in)
        how.block_x, how.shared_mem = one.threads, one.shared
        numbers = trtp.SymIntExprs.from_tuple([trtp.SymInt32(n) for n in one.numbers])
        return one.kernel, one.ptx, how, numbers

    # TensorRT asks for the type of what comes back, and takes arguments without types.
    built.__annotations__ = {
        "return": tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]
    }
    trtp.aot_impl(NAME)(built)
    plugins.generate_plugin_converter(NAME, supports_dynamic_shapes=True)


def _fitting(inputs: int, outputs: int, dtype: torch.dtype) -> Tile:
    """The tile that a GPU would take, less deep, and narrower if it does not fit even so."""
    tile = tile_for(inputs, outputs, dtype.itemsize)
    while tile.groups * tile.inputs * tile.outputs * dtype.itemsize > MOST_SHARED // 3:
        tile = replace(tile, outputs=tile.outputs // 2)
    return replace(tile, stages=min(tile.stages, 3))


def _number(attribute: Any) -> float:
    """A number of a plugin's, which versions of TensorRT hold in an array or plainly."""
    return float(attribute.reshape(-1)[0] if hasattr(attribute, "reshape") else attribute)
