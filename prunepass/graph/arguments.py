"""The arguments of a node as a tree: where its operands stand, and putting others there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

Path = tuple[int | str, ...]
"""Where an argument stands: `args` or `kwargs`, then positions and names down to it."""


def operands(node: Node) -> list[tuple[Path, Node]]:
    """The nodes among the arguments of a node, each with its path; one may stand in several."""
    found: list[tuple[Path, Node]] = []

    def note(path: Path, value: Any) -> Any:
        if isinstance(value, Node):
            found.append((path, value))
        return value

    map_arguments(node.args, ("args",), note)
    map_arguments(dict(node.kwargs), ("kwargs",), note)
    return found


def substitute(value: Any, path: Path, new: Any) -> Any:
    """`value` (nested tuples, lists, dicts) with the entry at `path` replaced."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {k: substitute(v, rest, new) if k == head else v for k, v in value.items()}
    items = [substitute(v, rest, new) if i == head else v for i, v in enumerate(value)]
    return tuple(items) if isinstance(value, tuple) else items


def replace_argument(node: Node, path: Path, new: Any) -> None:
    """Sets the argument of a node at a path that starts with `args` or `kwargs`."""
    if path[0] == "args":
        node.args = substitute(tuple(node.args), path[1:], new)
    else:
        node.kwargs = substitute(dict(node.kwargs), path[1:], new)


def changed_arguments(
    node: Node, change: Callable[[Node], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """args and kwargs of a node with `change` applied to every operand."""

    def each(_: Path, value: Any) -> Any:
        return change(value) if isinstance(value, Node) else value

    args = map_arguments(tuple(node.args), (), each)
    return args, map_arguments(dict(node.kwargs), (), each)


def map_arguments(value: Any, path: Path, function: Callable[[Path, Any], Any]) -> Any:
    """`value` (nested tuples, lists, dicts) with every leaf replaced by function(path, leaf)."""
    if isinstance(value, dict):
        return {k: map_arguments(v, (*path, k), function) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [map_arguments(v, (*path, i), function) for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    return function(path, value)
