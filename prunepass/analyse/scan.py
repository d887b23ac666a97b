"""Recognising state-space scans, and the order in which values have their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import Graph, Node

from prunepass.graph import meta
from prunepass.ops.selective_scan import SCAN
from prunepass.ops.token_places import REORDER

Order = tuple[int, ...]

_SUMS = (torch.ops.aten.add.Tensor,)
_PRODUCTS = (torch.ops.aten.mul.Tensor,)


@dataclass(frozen=True)
class Scan:
    """One recurrence h_t = a_t h_(t-1) + b_t of a graph.

    Attributes:
        core: The scan; of one that is written out step by step, its last step; of one in blocks,
            how much of each token is left at each later one of its block (Mamba-2).
        form: `operation`, `steps` or `blocks`.
        steps: How many steps are written out, None where they are not.
    """

    core: Node
    form: Literal["operation", "steps", "blocks"] = "operation"
    steps: int | None = None


def find_scans(graph: Graph) -> list[Scan]:
    """All scans of a graph, in graph order."""
    found, last = [], _last_steps(graph)
    for node in graph.nodes:
        if node.target is SCAN:
            found.append(Scan(node))
        elif node in last:
            found.append(Scan(node, "steps", last[node]))
        elif _is_segment_sum(node):
            found.append(Scan(node, "blocks"))
    return found


def step_bias(scan: Node) -> Node | None:
    """[C], what a scan's step is softplus of where a token is all zeros; None if unknown."""
    step = scan.args[1]
    while isinstance(step, Node) and step.target is REORDER:
        step = step.args[0]
    if not isinstance(step, Node) or step.target is not torch.ops.aten.softplus.default:
        return None
    inner = step.args[0]
    if not isinstance(inner, Node) or inner.target is not torch.ops.aten.linear.default:
        return None
    bias = inner.args[2] if len(inner.args) > 2 else inner.kwargs.get("bias")
    return bias if isinstance(bias, Node) else None


def token_orders(graph: Graph) -> Mapping[Node, Order]:
    """Which token stands in each place, for values that do not have them in order.

    `reorder_tokens` changes the order, what follows keeps that of its first operand that has one;
    a scan that of its input.
    """
    found: dict[Node, Order] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is REORDER:
            source, places = node.args
            before = found.get(source)
            order = tuple(places if before is None else (before[place] for place in places))
            if order != tuple(range(len(order))):
                found[node] = order
            continue
        operands: Any = node.args[:1] if node.target is SCAN else node.all_input_nodes
        orders = [found[n] for n in operands if n in found]
        if orders:
            found[node] = orders[0]
    return found


def _last_steps(graph: Graph) -> dict[Node, int]:
    """The last steps of recurrences that are written out, with how many steps there are."""
    length: dict[Node, int] = {}
    for node in graph.nodes:
        before = _step_before(node)
        if before is not None:
            length[node] = 1 + length.get(before, 0)
    inner = {_step_before(node) for node in length}
    return {node: steps for node, steps in length.items() if node not in inner and steps > 2}


def _step_before(node: Node) -> Node | None:
    """h_(t-1), if a node is a_t h_(t-1) + b_t with a_t and b_t taken out of two sequences."""
    if node.op != "call_function" or node.target not in _SUMS:
        return None
    for product, entering in (node.args[:2], node.args[1::-1]):
        if not isinstance(product, Node) or product.target not in _PRODUCTS:
            continue
        came = _item(entering)
        for decay, state in (product.args[:2], product.args[1::-1]):
            left = _item(decay)
            if came is None or left is None or not isinstance(state, Node):
                continue
            if left[1:] == came[1:] and left[0] is not came[0]:
                return meta.uncast(state)
    return None


def _item(value: Any) -> tuple[Any, ...] | None:
    """(sequence, axis, place), if a value is one entry of a sequence; slices of all are nothing."""
    value = _unsliced(value)
    if not isinstance(value, Node) or value.target is not torch.ops.aten.select.int:
        return None
    return (_unsliced(value.args[0]), *value.args[1:])


def _unsliced(value: Any) -> Any:
    while isinstance(value, Node) and value.target is torch.ops.aten.slice.Tensor:
        start, end = (*value.args[2:4], None, None)[:2]
        if start not in (0, None) or not (end is None or end > 1 << 40):  # type: ignore[operator]
            break
        value = value.args[0]
    return value


def _is_segment_sum(node: Node) -> bool:
    """Whether a node is exp of sums over all stretches of a block, minus infinity above them."""
    chain = (
        torch.ops.aten.exp.default,
        torch.ops.aten.masked_fill.Scalar,
        torch.ops.aten.cumsum.default,
        torch.ops.aten.masked_fill.Scalar,
    )
    for target in chain:
        if not isinstance(node, Node) or node.target is not target:
            return False
        node = node.args[0]  # type: ignore[assignment]
    return True
