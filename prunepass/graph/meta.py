"""The one reader and writer of `node.meta`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

_KEY = "prunepass"
TOLD = (":reduce.kept", ":reduce.dropped", ":reduce.target")
"""Ends of labels of what an engine can be asked for: [B, K], [B, R] and [B, R] int64."""


def labels(node: Node) -> tuple[str, ...]:
    """The labels of a node, e.g. `("block[0].attention:output", "block[0].mlp:input")`."""
    return tuple((node.meta.get("custom") or {}).get(_KEY, ()))


def add_label(node: Node, label: str) -> None:
    """Adds a label to a node, once. Labels survive re-export, saving and decomposition.

    Not so on `getitem`: re-export makes the items of a tuple anew, without their labels.
    """
    custom = dict(node.meta.get("custom") or {})
    if label in custom.get(_KEY, ()):
        return
    custom[_KEY] = [*custom.get(_KEY, ()), label]
    node.meta["custom"] = custom


def is_told(label: str) -> bool:
    """Whether a label names which tokens stay, go, or are merged into which."""
    return label.endswith(TOLD)


def clear_labels(graph: torch.fx.Graph) -> None:
    """Takes all labels away."""
    for node in graph.nodes:
        if labels(node):
            node.meta["custom"] = {k: v for k, v in node.meta["custom"].items() if k != _KEY}


def labelled(graph: torch.fx.Graph) -> dict[str, Node]:
    """Label -> node, over a whole graph. Where several nodes share a label, the last one."""
    return {label: node for node in graph.nodes for label in labels(node)}


def module_path(node: Node) -> str:
    """Path of the module a node was traced in, e.g. `blocks.0.attn`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path or "the model itself"


def inherit(node: Node, source: Node) -> None:
    """Gives an inserted node the module path of the node it stands beside."""
    if "nn_module_stack" in source.meta:
        node.meta["nn_module_stack"] = source.meta["nn_module_stack"]


def value(node: Node) -> Any:
    """The example value of a node: a fake tensor, a tuple of them, a SymInt or None."""
    return node.meta.get("val")


def shape(node: Node) -> tuple[int | torch.SymInt, ...] | None:
    """Shape of a node's tensor, dynamic sizes as SymInt; None if it is no tensor."""
    val = value(node)
    return tuple(val.shape) if isinstance(val, torch.Tensor) else None


def uncast(node: Node) -> Node:
    """What a node is a cast of that changes nothing, or the node itself."""
    while node.op == "call_function" and node.target is torch.ops.aten.to.dtype:
        source = node.args[0]
        if not isinstance(source, Node) or value(source).dtype != value(node).dtype:
            break
        node = source
    return node


Sizes = int | Mapping[str, int]
"""What dynamic sizes are taken as: one number for all of them, or one for each symbol by name."""


def concrete(size: int | torch.SymInt, sizes: Sizes) -> int:
    """A size with every dynamic dimension taken as `sizes` says."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    taken = {s: sizes if isinstance(sizes, int) else sizes[s.name] for s in expression.free_symbols}
    return int(expression.subs(taken))


def concrete_shape(node: Node, sizes: Sizes) -> tuple[int, ...] | None:
    """Shape of a node's tensor with every dynamic dimension taken as `sizes` says."""
    found = shape(node)
    return None if found is None else tuple(concrete(size, sizes) for size in found)


def sizes_for(graph: torch.fx.Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes, by symbol, that make inputs of a program have these shapes, or begin with them."""
    found: dict[str, int] = {}
    for node in graph.find_nodes(op="placeholder"):
        for have, size in zip(shape(node) or (), shapes.get(node.name, ()), strict=False):
            if isinstance(have, torch.SymInt):
                for symbol in have.node.expr.free_symbols:
                    found[symbol.name] = size
    return found
