"""Multiply-accumulates of a decoder as the papers on sparse activation count them."""

from __future__ import annotations


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
