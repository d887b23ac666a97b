"""What makes a node fit that breaks with fewer tokens: a size rewritten, or operands gathered.

A frozen size is an argument that holds the token count as a plain number; a live-in is an operand
made before the site that still has all tokens. What can be mended in exactly one way is mended.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from prunepass.analyse.token_positions import BATCH, Axes, op_name, refuse
from prunepass.analyse.token_probe import VIEWS, Change, Probe
from prunepass.graph import meta
from prunepass.graph.arguments import Path, map_arguments

_BROADCASTING = {
    "add", "sub", "mul", "div", "where", "maximum", "minimum", "addcmul", "masked_fill",
    "scaled_dot_product_attention", "cat", "pow", "eq", "ne", "lt", "gt", "le", "ge",
    "logical_and", "logical_or", "bitwise_and", "bitwise_or", "rsub",
}  # fmt: skip
"""Operations whose tensor operands are aligned entry by entry, so that a live-in can be gathered
for each batch item by itself."""


@dataclass(frozen=True)
class FrozenSize:
    """An argument that holds `tokens + offset` as a plain number."""

    node: Node
    path: Path
    offset: int


@dataclass(frozen=True)
class LiveIn:
    """An operand made before the site that still has all tokens, at one of its users."""

    node: Node
    path: Path
    source: Node
    axes: Axes


@dataclass(frozen=True)
class Mend:
    """What makes a node fit.

    Attributes:
        results: What it gives then, at every token count of the probe.
        frozen: Sizes to rewrite.
        live_ins: Operands to gather.
    """

    results: list[Any]
    frozen: tuple[FrozenSize, ...] = ()
    live_ins: tuple[LiveIn, ...] = ()


def mend(probe: Probe, node: Node) -> Mend:
    """The one way to make a node fit that breaks with fewer tokens.

    Raises:
        Refusal: There is none, or more than one.
    """
    found = _frozen_sizes(probe, node) or _live_ins(probe, node)
    if not found:
        raise refuse(node, _why_no_change(probe, node))
    if len(found) > 1:
        raise refuse(node, f"{len(found)} different changes would make it fit")
    return found[0]


def _frozen_sizes(probe: Probe, node: Node) -> list[Mend]:
    if node.target in (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor):
        return []
    slots: list[tuple[Path, int]] = []

    def collect(path: Path, arg: Any) -> Any:
        if isinstance(arg, int) and not isinstance(arg, bool) and arg > max(probe.deltas):
            slots.append((path, arg))
        return arg

    map_arguments(node.args, ("args",), collect)
    map_arguments(dict(node.kwargs), ("kwargs",), collect)
    found = []
    for path, size in slots:
        results = probe.attempt(node, {path: _less(size)})
        if results is not None and probe.fits(node, results):
            found.append(Mend(results, frozen=(FrozenSize(node, path, size - probe.tokens),)))
    return found


def _less(size: int) -> Change:
    return lambda delta: size - delta


def _live_ins(probe: Probe, node: Node) -> list[Mend]:
    """Ways that shrink the fewest axes of operands."""
    candidates = _axes_with_all_tokens(probe, node)
    for count in range(1, len(candidates) + 1):
        found = []
        for subset in itertools.combinations(candidates, count):
            chosen: dict[Path, list[int]] = {}
            for path, _, axis in subset:
                chosen.setdefault(path, []).append(axis)
            sources = {path: source for path, source, _ in subset}
            results = probe.attempt(
                node, {path: probe.shorter(sources[path], axes) for path, axes in chosen.items()}
            )
            if results is not None and probe.shrinks(node, results):
                made = [_live_in(probe, node, p, sources[p], axes) for p, axes in chosen.items()]
                found.append(Mend(results, live_ins=tuple(made)))
        if found:
            if op_name(node) not in _BROADCASTING:
                raise refuse(node, "a weight is tied to token positions")
            return found
    return []


def _axes_with_all_tokens(probe: Probe, node: Node) -> list[tuple[Path, Node, int]]:
    """Where each stands, operands made elsewhere and their axes as long as one of tokens."""
    sizes = {
        meta.concrete_shape(n, BATCH)[axis]  # type: ignore[index]
        for n in node.all_input_nodes
        for axis, _ in probe.axes.get(n, ())
    }
    found: list[tuple[Path, Node, int]] = []

    def collect(path: Path, arg: Any) -> Any:
        full = probe.full(arg) if isinstance(arg, Node) and arg not in probe else None
        if isinstance(full, torch.Tensor):
            found.extend((path, arg, axis) for axis, s in enumerate(full.shape) if s in sizes)
        return arg

    map_arguments(node.args, ("args",), collect)
    map_arguments(dict(node.kwargs), ("kwargs",), collect)
    return found


def _live_in(probe: Probe, node: Node, path: Path, source: Node, axes: Sequence[int]) -> LiveIn:
    shape = probe.full(source).shape
    return LiveIn(node, path, source, tuple((a, int(shape[a]) - probe.tokens) for a in axes))


def _why_no_change(probe: Probe, node: Node) -> str:
    source, after = node.args[0] if node.args else None, meta.concrete_shape(node, BATCH) or ()
    if op_name(node) in VIEWS and isinstance(source, Node):
        before = meta.concrete_shape(source, BATCH) or ()
        counts = {before[axis] for axis, _ in probe.axes.get(source, ())}
        for high, wide in itertools.pairwise(after):
            if high > 1 and wide > 1 and high * wide in counts and high * wide not in after:
                return f"lays the tokens out on a grid of {high} x {wide}, each in its place"
    return "no change of one size or operand makes it fit"
