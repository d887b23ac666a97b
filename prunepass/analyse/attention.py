"""Recognising attention: fused calls, and softmax between two matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from prunepass.graph import meta

FUSED = torch.ops.aten.scaled_dot_product_attention.default
_SOFTMAX = {torch.ops.aten.softmax.int, torch.ops.aten._softmax.default}
_PRODUCTS = {
    torch.ops.aten.matmul.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.einsum.default,
    torch.ops.aten.baddbmm.default,
}
_TRANSPOSES = {
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.mT.default,
}


@dataclass(frozen=True)
class Attention:
    """One attention of a graph.

    Attributes:
        core: The fused call, or the softmax.
        output: The fused call, or the product of probabilities and values.
        query: [B, H, Q, D], or None where it was not recognised.
        key: [B, H, T, D], or None.
        value: [B, H, T, D], or None.
        probabilities: [B, H, Q, T] after softmax where the graph writes them out, else None.
    """

    core: Node
    output: Node
    query: Node | None
    key: Node | None
    value: Node | None
    probabilities: Node | None


def find_attentions(graph: Graph) -> list[Attention]:
    """All attentions of a graph, in graph order."""
    found = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is FUSED:
            query, key, value = node.args[:3]
            found.append(Attention(node, node, query, key, value, None))
        elif node.target in _SOFTMAX:
            attention = _unfused(node)
            if attention is not None:
                found.append(attention)
    return found


def _unfused(softmax: Node) -> Attention | None:
    shape = meta.shape(softmax)
    dim: Any = softmax.args[1]
    if shape is None or len(shape) < 3 or dim % len(shape) != len(shape) - 1:
        return None
    output = _product_after(softmax)
    scores = _product_before(softmax.args[0])
    if output is None or scores is None:
        return None
    operands = [a for a in output.args if isinstance(a, Node)]
    value = operands[1] if len(operands) > 1 else None
    query, transposed = (scores.args[0], scores.args[1]) if len(scores.args) > 1 else (None, None)
    key = _untransposed(transposed)
    return Attention(
        softmax,
        output,
        _unscaled(query) if len(shape) == 4 else None,
        key if len(shape) == 4 else None,
        value,
        softmax if len(shape) == 4 else None,
    )


def _product_after(node: Node) -> Node | None:
    """The matrix product that weighs values by `node`, through ops that keep its meaning."""
    for _ in range(8):
        users = [u for u in node.users if u.op == "call_function"]
        if len(users) > 1:
            # A rule may read the probabilities, too; the product with the values stands first.
            users = [u for u in users if u.target in _PRODUCTS and u.args[0] is node]
        if not users:
            return None
        node = users[0]
        if node.target in _PRODUCTS:
            return node
    return None


def _product_before(node: Any) -> Node | None:
    """The product of queries and keys that `node` was computed from."""
    for _ in range(10):
        if not isinstance(node, Node) or node.op != "call_function":
            return None
        if node.target in _PRODUCTS:
            return node
        operands = [a for a in node.args if isinstance(a, Node)]
        if not operands:
            return None
        node = operands[0]
    return None


def _untransposed(node: Any) -> Node | None:
    """What was transposed on its last two axes to make `node`, through a scaling."""
    node = _unscaled(node)
    if isinstance(node, Node) and node.target in _TRANSPOSES:
        source = node.args[0]
        before = meta.shape(source) if isinstance(source, Node) else None
        after = meta.shape(node)
        if before and after and (*before[:-2], before[-1], before[-2]) == after:
            return source  # type: ignore[return-value]
    return None


def _unscaled(node: Any) -> Any:
    if (
        isinstance(node, Node)
        and node.target in (torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor)
        and not isinstance(node.args[1], Node)
    ):
        return node.args[0]
    return node
