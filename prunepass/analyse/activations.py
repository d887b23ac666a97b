"""Bytes that the operations of a program write, and how many are needed at one time."""

from __future__ import annotations

from collections.abc import Container
from math import prod

import torch
from torch.fx import Node

from prunepass.graph import meta


def is_view(node: Node) -> bool:
    """Whether the result of an operation is its operand, laid out another way."""
    if node.target is torch.ops.aten.dropout.default:
        return True
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def is_item(node: Node) -> bool:
    """Whether an operation takes one result of several out of a tuple."""
    return getattr(node.target, "__name__", "") == "getitem"


def bytes_of(node: Node, sizes: meta.Sizes) -> int:
    """Bytes of what an operation gives, all of its tensors."""
    values = meta.value(node)
    total = 0
    for value in values if isinstance(values, (tuple, list)) else (values,):
        if isinstance(value, torch.Tensor):
            shape = (meta.concrete(size, sizes) for size in value.shape)
            total += prod(shape) * value.element_size()
    return total


def most_alive(nodes: list[Node], weights: Container[str], sizes: meta.Sizes) -> int:
    """Most bytes alive at one time, weights left out; inputs live until the end.

    Args:
        nodes: In the order they run.
        weights: Names of the placeholders that stand for weights.
        sizes: What dynamic sizes are taken as.
    """
    owner: dict[Node, Node] = {}
    last: dict[Node, int] = {}
    for place, node in enumerate(nodes):
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        shares = node.op == "call_function" and (is_view(node) or is_item(node))
        owner[node] = owner[source] if shares else node
        for read in (*node.all_input_nodes, node):
            last[owner[read]] = place
    alive = sum(
        bytes_of(n, sizes) for n in nodes if n.op == "placeholder" and n.name not in weights
    )
    ends: dict[int, list[Node]] = {}
    for node, place in last.items():
        ends.setdefault(place, []).append(node)
    peak = alive
    for place, node in enumerate(nodes):
        if node.op == "call_function" and owner[node] is node:
            alive += bytes_of(node, sizes)
        peak = max(peak, alive)
        ended = (n for n in ends.get(place, ()) if n.op == "call_function")
        alive -= sum(bytes_of(n, sizes) for n in ended)
    return peak
