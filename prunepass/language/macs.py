"""Multiply-accumulates of a decoder: as papers on sparse activation count them, and by rows."""

from __future__ import annotations

from torch.export import ExportedProgram

from prunepass.analyse.flops import macs, read_nodes
from prunepass.graph.meta import sizes_for
from prunepass.kernels.sparse_linear import GATED_LINEAR


def decoder_macs(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    vocabulary: int,
    key_value: int | None = None,
    keep: float = 1.0,
    rotated: bool = False,
) -> float:
    """MACs of one decoded token: layers that read a share of their inputs, and the head.

    Products of attention are left out, as is usual there; `analyse.flops.macs` counts them.

    Args:
        hidden: d, width of the stream.
        intermediate: m, width of the MLP.
        layers: L.
        vocabulary: V; the head is never made sparse.
        key_value: Width of keys and of values, None for d.
        keep: Share of the inputs that are read.
        rotated: Whether each of the two shortcuts of a layer is rotated, which the paper leaves
            out of its table.

    Source: WINA, arXiv 2505.19427, table of FLOPs.
    """
    narrow = hidden if key_value is None else key_value
    layer = 2 * hidden**2 + 2 * hidden * narrow + 3 * hidden * intermediate
    turns = 2 * hidden**2 if rotated else 0
    return layers * (keep * layer + turns) + hidden * vocabulary


def macs_above(program: ExportedProgram) -> tuple[tuple[int, int], ...]:
    """(R, MACs of a token where more than R are decoded at once), R ascending.

    A sparse product of more tokens than its step allows is dense, so a token of a batch costs more
    than one alone; each layer has a bound of its own.

    Args:
        program: From `capture`, with or without sparse products.
    """
    every = read_nodes(program.graph)
    bounds = {n.args[5] for n in every if n.target is GATED_LINEAR and isinstance(n.args[5], int)}
    return tuple((rows, _macs_of(program, rows + 1)) for rows in sorted(bounds) if rows)


def _macs_of(program: ExportedProgram, batch: int) -> int:
    """MACs of one of so many tokens, each of a prompt of its own and behind one in the cache."""
    inputs = program.graph.find_nodes(op="placeholder")
    # All sizes but the batch, which comes first, are one, as where `macs` counts a token.
    sizes = sizes_for(program.graph, {node.name: (batch, 1, 1, 1) for node in inputs})
    return macs(program, sizes=sizes) // batch
