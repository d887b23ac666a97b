"""Taking out of a graph what computes nothing new."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from prunepass.graph import meta

_NO_OPS = {
    torch.ops.aten.dropout.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.lift_fresh_copy.default,
}
_IMPURE = {torch.ops.aten.rand.default, torch.ops.aten.randn.default}


def drop_no_ops(graph: Graph) -> int:
    """How many nodes without effect at inference were taken out; labels move to their operand."""
    dropped = 0
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _NO_OPS:
            source = node.args[0]
            assert isinstance(source, Node)
            _put_in_place_of(node, source)
            dropped += 1
    return dropped


def drop_unread(graph: Graph) -> None:
    """Takes out what nobody reads, attention too, which may drop at random and so would stay."""
    graph.eliminate_dead_code(is_impure_node=_has_effect)


def _has_effect(node: Node) -> bool:
    """Whether a node must stay though nothing reads it."""
    return node.op in ("placeholder", "output") or node.target in (
        torch.ops.aten.copy_.default,
        torch.ops.aten._assert_scalar.default,
    )


def drop_casts(graph: Graph) -> None:
    """Takes out casts of a tensor to the dtype it has, which tracing writes down, too."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.to.dtype):
        source = node.args[0]
        if isinstance(source, Node) and meta.value(source).dtype == meta.value(node).dtype:
            _put_in_place_of(node, source)


def drop_checks(graph: Graph) -> None:
    """Takes out the checks that tracing writes: types beside each cast, and sizes.

    Sizes are checked for what the trace took for granted, such as more than one of anything; the
    operations themselves do not need that.
    """
    for target in (
        torch.ops.aten._assert_tensor_metadata.default,
        torch.ops.aten._assert_scalar.default,
    ):
        for node in graph.find_nodes(op="call_function", target=target):
            graph.erase_node(node)


def fold_duplicates(graph: Graph) -> int:
    """How many nodes were replaced by an earlier one with the same operation and operands."""
    seen: dict[Any, Node] = {}
    folded = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target in _IMPURE or not node.users:
            continue
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            continue
        key = (node.target, _frozen(node.args), _frozen(dict(node.kwargs)))
        earlier = seen.setdefault(key, node)
        if earlier is node:
            continue
        _put_in_place_of(node, earlier)
        folded += 1
    return folded


def _put_in_place_of(node: Node, other: Node) -> None:
    """Takes a node out; the other gets its users and labels."""
    for label in meta.labels(node):
        meta.add_label(other, label)
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _frozen(value: Any) -> Any:
    """`value` as something hashable that tells 1, 1.0 and True apart."""
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in sorted(value.items()))
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(v) for v in value)
    return (type(value).__name__, value) if not isinstance(value, Node) else value
