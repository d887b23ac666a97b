"""Recognising RMS norms in front of linear layers, and the stream they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta

_aten = torch.ops.aten
_CASTS = {_aten.to.dtype, _aten._to_copy.default, _aten.to.dtype_layout}


@dataclass(frozen=True)
class RmsNorm:
    """One RMS norm.

    Attributes:
        output: What linear layers read, [B, T, C].
        bare: The same before the gain.
        gain: The parameter [C], a node that reads it.
        stream: What is normed, [B, T, C].
    """

    output: Node
    bare: Node
    gain: Node
    stream: Node


def rms_norm_before(linear: Node) -> RmsNorm:
    """The RMS norm whose output a linear layer reads.

    Raises:
        UnsupportedGraph: There is another kind of norm, or none.
    """
    output = linear.args[0]
    found = rms_norm(output) if isinstance(output, Node) else None
    if found is None:
        raise UnsupportedGraph(
            f"cannot rotate the inputs of {meta.module_path(linear)}",
            found=f"it does not read an RMS norm but {getattr(output, 'target', output)}",
            fix="rotate=False: only norms without a mean or an offset commute with a rotation",
        )
    return found


def rms_norm(output: Node) -> RmsNorm | None:
    """The norm that a node is the result of, None if it is none.

    That is gain * cast(x * rsqrt(mean(x^2) + eps)), in either order of the factors.
    """
    if output.target is not _aten.mul.Tensor:
        return None
    sides: Any = output.args[:2]
    gain = next((s for s in sides if _is_parameter(s)), None)
    bare = next((s for s in sides if s is not gain), None)
    if gain is None or not isinstance(bare, Node):
        return None
    product = _uncast(bare)
    if product.target is not _aten.mul.Tensor:
        return None
    factors = [f for f in product.args[:2] if isinstance(f, Node)]
    scale = next((f for f in factors if f.target is _aten.rsqrt.default), None)
    value = next((f for f in factors if f is not scale), None)
    if scale is None or value is None:
        return None
    if not _is_mean_square(scale.args[0], value):
        return None
    return RmsNorm(output, bare, gain, _uncast(value))


def _is_mean_square(node: Any, value: Node) -> bool:
    """Whether a node is mean(value^2), with or without an epsilon added."""
    if isinstance(node, Node) and node.target is _aten.add.Tensor:
        node = node.args[0]
    if not isinstance(node, Node) or node.target is not _aten.mean.dim:
        return False
    square = node.args[0]
    if not isinstance(square, Node) or square.args[0] is not value:
        return False
    if square.target is _aten.pow.Tensor_Scalar:
        return bool(square.args[1] == 2)
    return square.target is _aten.mul.Tensor and square.args[1] is value


def _is_parameter(node: Any) -> bool:
    shape = meta.shape(node) if isinstance(node, Node) else None
    return shape is not None and len(shape) == 1 and node.op == "get_attr"


def _uncast(node: Node) -> Node:
    while node.target in _CASTS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node
