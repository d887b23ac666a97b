"""Inserting calls of plain Python functions into a graph; sealing inlines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Graph, Node

from prunepass.graph import meta


def insert_call(
    graph: Graph,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    before: Node,
    label: str,
) -> Node:
    """The new node that calls `function`, placed before a node and labelled.

    All operations the function performs carry the label after sealing.
    """
    with graph.inserting_before(before):
        node = graph.call_function(function, args, dict(kwargs or {}))
    meta.add_label(node, label)
    meta.inherit(node, before)
    return node
