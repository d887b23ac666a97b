"""Where the token axis runs behind a site, and what has to shrink with it.

Everything downstream of a site is run on meta tensors with a few tokens fewer. What breaks tells
what the graph froze: an argument that carries the token count (a *frozen size*), or an operand
made elsewhere that still has all tokens (a *live-in*). What breaks and cannot be mended in exactly
one way is a reason to refuse, with the operation and the sizes named.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from prunepass.analyse.token_positions import (
    BATCH,
    Axes,
    Refusal,
    check_positions,
    op_name,
    refuse,
    shape_text,
)
from prunepass.graph import meta
from prunepass.graph.arguments import Path, map_arguments

_VIEWS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"}

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


@dataclass
class TokenTrace:
    """What shrinks when tokens are removed at a site.

    Attributes:
        site: Node whose axis 1 is shrunk.
        tokens: Tokens on that axis.
        axes: Node -> its token axes, for every node downstream that still has one; for nodes with
            several outputs, a tuple of such entries stands in `parts`.
        frozen: Frozen sizes to rewrite.
        live_ins: Operands to gather.
        reaches_output: Whether an output of the program carries a token axis.
    """

    site: Node
    tokens: int
    axes: dict[Node, Axes] = field(default_factory=dict)
    frozen: list[FrozenSize] = field(default_factory=list)
    live_ins: list[LiveIn] = field(default_factory=list)
    reaches_output: bool = False


def trace_tokens(
    module: GraphModule,
    site: Node,
    *,
    prefix: int,
    fixed: Collection[int] = (),
    until: Node | None = None,
) -> TokenTrace:
    """What shrinks with the token axis (axis 1) of `site`.

    Args:
        module: An opened program.
        site: Node with a value of shape [B, T, C].
        prefix: Leading tokens that always stay; reading one of them by index is allowed.
        fixed: Numbers of other tokens that always stay.
        until: Where all tokens are back; None where they never are.

    Raises:
        Refusal: Some operation downstream does not admit another number of tokens.
    """
    shape = meta.concrete_shape(site, BATCH)
    if shape is None or len(shape) != 3:
        raise Refusal(
            f"cannot remove tokens at {meta.module_path(site)}",
            node=site,
            found=f"{site.target} on {shape_text(site)}: tokens are laid out on a grid, where "
            "each has its place; token reduction needs a sequence [B, T, C]",
        )
    if not isinstance(meta.shape(site)[1], int):  # type: ignore[index]
        raise Refusal(
            f"cannot remove tokens at {meta.module_path(site)}",
            node=site,
            found=f"{site.target} on {shape_text(site)}: axis 1 is the batch; token reduction "
            "needs a sequence [B, T, C]",
        )
    tokens = shape[1]
    removable = tokens - prefix - len(fixed)
    deltas = tuple(sorted({1, 2, removable // 2} - {0}))
    if removable < 3:
        raise Refusal(
            "too few tokens to remove any", node=site, found=f"{tokens} tokens, {prefix} prefix"
        )
    return _Probe(module, site, tokens, prefix, fixed, deltas).run(until)


class _Probe:
    """One run of the downstream graph at several token counts, side by side."""

    def __init__(
        self,
        module: GraphModule,
        site: Node,
        tokens: int,
        prefix: int,
        fixed: Collection[int],
        deltas: tuple[int, ...],
    ) -> None:
        self.module, self.prefix, self.fixed, self.deltas = module, prefix, fixed, deltas
        self.trace = TokenTrace(site=site, tokens=tokens)
        self.full: dict[Node, Any] = {}
        self.shrunk: dict[Node, list[Any]] = {}

    def run(self, until: Node | None) -> TokenTrace:
        site = self.trace.site
        self._start(site)
        started, ended = False, site is until
        for node in self.module.graph.nodes:
            started = started or node is site
            if not started or node is site:
                continue
            if ended:
                if any(n in self.shrunk and n is not until for n in node.all_input_nodes):
                    raise refuse(node, "reads tokens from before the place where they come back")
                continue
            ended = node is until
            if node.op == "output":
                self.trace.reaches_output = any(n in self.shrunk for n in node.all_input_nodes)
            elif any(n in self.shrunk for n in node.all_input_nodes):
                self._visit(node)
        return self.trace

    def _start(self, site: Node) -> None:
        shape = meta.concrete_shape(site, BATCH)
        assert shape is not None
        dtype = meta.value(site).dtype
        self.shrunk[site] = [
            torch.empty((shape[0], shape[1] - d, *shape[2:]), dtype=dtype, device="meta")
            for d in self.deltas
        ]
        self.trace.axes[site] = ((1, 0),)

    def _visit(self, node: Node) -> None:
        if node.op != "call_function":
            raise refuse(node, f"{node.op} {node.target} has tokens among its inputs")
        check_positions(node, self.trace.axes, self.prefix, self.fixed)
        results = self._attempt(node, {})
        if results is None:
            results = self._mend(node)
        self._record(node, results)

    def _attempt(self, node: Node, changes: dict[Path, Any]) -> list[Any] | None:
        """Results at every token count, or None if one fails.

        `changes` maps an argument path to a function of the delta that gives its new value."""
        results = []
        for position, delta in enumerate(self.deltas):

            def convert(path: Path, arg: Any, position: int = position, delta: int = delta) -> Any:
                if path in changes:
                    return changes[path](delta)
                if isinstance(arg, Node):
                    if arg in self.shrunk:
                        return self.shrunk[arg][position]
                    return self._full(arg)
                return arg

            args = map_arguments(node.args, ("args",), convert)
            kwargs = map_arguments(dict(node.kwargs), ("kwargs",), convert)
            kwargs.pop("device", None) if isinstance(kwargs, dict) else None
            try:
                results.append(_call(node, args, kwargs))
            except (RuntimeError, IndexError, ValueError, TypeError):
                return None
        return results

    def _mend(self, node: Node) -> list[Any]:
        readings = [*self._frozen_readings(node)]
        if not readings:
            readings = [*self._live_in_readings(node)]
        if len(readings) != 1:
            raise refuse(
                node,
                self._why_no_change(node)
                if not readings
                else f"{len(readings)} different changes would make it fit",
            )
        results, frozen, live_ins = readings[0]
        self.trace.frozen += frozen
        self.trace.live_ins += live_ins
        return results

    def _why_no_change(self, node: Node) -> str:
        source, after = node.args[0] if node.args else None, meta.concrete_shape(node, BATCH) or ()
        if op_name(node) in _VIEWS and isinstance(source, Node):
            before = meta.concrete_shape(source, BATCH) or ()
            counts = {before[axis] for axis, _ in self.trace.axes.get(source, ())}
            for high, wide in itertools.pairwise(after):
                if high > 1 and wide > 1 and high * wide in counts and high * wide not in after:
                    return f"lays the tokens out on a grid of {high} x {wide}, each in its place"
        return "no change of one size or operand makes it fit"

    def _frozen_readings(
        self, node: Node
    ) -> Iterator[tuple[list[Any], list[FrozenSize], list[LiveIn]]]:
        if node.target in (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor):
            return
        slots: list[tuple[Path, int]] = []

        def collect(path: Path, arg: Any) -> Any:
            if isinstance(arg, int) and not isinstance(arg, bool) and arg > max(self.deltas):
                slots.append((path, arg))
            return arg

        map_arguments(node.args, ("args",), collect)
        map_arguments(dict(node.kwargs), ("kwargs",), collect)
        for path, size in slots:
            results = self._attempt(node, {path: lambda delta, size=size: size - delta})
            if (
                results is not None
                and self._axes_of(node, results) is not None
                and self._keeps_apart(node, results)
            ):
                yield results, [FrozenSize(node, path, size - self.trace.tokens)], []

    def _live_in_readings(
        self, node: Node
    ) -> Iterator[tuple[list[Any], list[FrozenSize], list[LiveIn]]]:
        sizes = {
            meta.concrete_shape(n, BATCH)[axis]  # type: ignore[index]
            for n in node.all_input_nodes
            for axis, _ in self.trace.axes.get(n, ())
        }
        candidates: list[tuple[Path, Node, int]] = []

        def collect(path: Path, arg: Any) -> Any:
            if isinstance(arg, Node) and arg not in self.shrunk:
                full = self._full(arg)
                if isinstance(full, torch.Tensor):
                    for axis, size in enumerate(full.shape):
                        if size in sizes:
                            candidates.append((path, arg, axis))
            return arg

        map_arguments(node.args, ("args",), collect)
        map_arguments(dict(node.kwargs), ("kwargs",), collect)
        for count in range(1, len(candidates) + 1):
            found = False
            for subset in itertools.combinations(candidates, count):
                chosen: dict[Path, list[int]] = {}
                sources: dict[Path, Node] = {}
                for path, source, axis in subset:
                    chosen.setdefault(path, []).append(axis)
                    sources[path] = source
                changes = {
                    path: self._shrinker(sources[path], axes) for path, axes in chosen.items()
                }
                results = self._attempt(node, changes)
                if results is None or self._axes_of(node, results) is None:
                    continue
                found = True
                yield (
                    results,
                    [],
                    [
                        LiveIn(
                            node,
                            path,
                            sources[path],
                            tuple(
                                (a, int(self._full(sources[path]).shape[a]) - self.trace.tokens)
                                for a in axes
                            ),
                        )
                        for path, axes in chosen.items()
                    ],
                )
            if found:
                self._check_live_in_user(node)
                return

    def _shrinker(self, source: Node, axes: list[int]) -> Any:
        full = self._full(source)

        def shrink(delta: int) -> torch.Tensor:
            shape = [s - delta if a in axes else s for a, s in enumerate(full.shape)]
            return torch.empty(shape, dtype=full.dtype, device="meta")

        return shrink

    def _check_live_in_user(self, node: Node) -> None:
        if op_name(node) not in _BROADCASTING:
            raise refuse(node, "a weight is tied to token positions")

    def _record(self, node: Node, results: list[Any]) -> None:
        axes = self._axes_of(node, results)
        if axes is None:
            raise refuse(node, "its result does not shrink by one entry a token")
        if not self._keeps_apart(node, results):
            raise refuse(node, "it mixes tokens with another axis")
        if isinstance(axes, list):
            if any(axes):
                self.shrunk[node] = results
                self.trace.axes[node] = ()
            return
        if axes:
            self.shrunk[node] = results
            self.trace.axes[node] = axes

    def _axes_of(self, node: Node, results: list[Any]) -> Any:
        """Token axes of a result (a list of them for a tuple), None where sizes do not add up."""
        val = meta.value(node)
        if isinstance(val, torch.Tensor):
            return self._axes(_sizes(val), results)
        if isinstance(val, (tuple, list)):
            if any(len(val) != len(r) for r in results):
                return None
            parts = [
                self._axes(_sizes(v), [r[i] for r in results])
                if isinstance(v, torch.Tensor)
                else ()
                for i, v in enumerate(val)
            ]
            return None if any(p is None for p in parts) else parts
        return ()

    def _axes(self, full: tuple[int, ...], results: list[torch.Tensor]) -> Axes | None:
        axes = []
        if any(len(full) != r.dim() for r in results):
            return None
        for axis, size in enumerate(full):
            change = tuple(size - r.shape[axis] for r in results)
            if change == self.deltas:
                axes.append((axis, size - self.trace.tokens))
            elif any(change):
                return None
        return tuple(axes)

    def _keeps_apart(self, node: Node, results: list[Any]) -> bool:
        """Whether a view leaves each token's entries together.

        It does where as many entries precede the token axis as before. That also tells the token
        axis from another of the same length: [B, 16, 4, 4] viewed as [B, 16, 16]."""
        source = node.args[0] if node.args else None
        if op_name(node) not in _VIEWS or not isinstance(source, Node):
            return True
        before = meta.concrete_shape(source, BATCH) or ()
        after = meta.concrete_shape(node, BATCH) or ()
        known = {(before[a], prod(before[:a])) for a, _ in self.trace.axes.get(source, ())}
        found = self._axes_of(node, results) or ()
        return all((after[a], prod(after[:a])) in known for a, _ in found)

    def _full(self, node: Node) -> Any:
        """The value of a node at the full token count, on the meta device."""
        if node not in self.full:
            if node.op == "get_attr":
                attribute: Any = self.module
                for part in str(node.target).split("."):
                    attribute = getattr(attribute, part)
                self.full[node] = (
                    attribute.to("meta") if isinstance(attribute, torch.Tensor) else attribute
                )
            else:
                self.full[node] = torch.utils._pytree.tree_map(_to_meta, meta.value(node))
        return self.full[node]


def _call(node: Node, args: Any, kwargs: Any) -> Any:
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return _attention_shape(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _attention_shape(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: Any,
    **__: Any,
) -> torch.Tensor:
    """Shape of fused attention; its meta kernel does not check the mask, so it is checked here."""
    if key.shape[-2] != value.shape[-2]:
        raise RuntimeError("keys and values differ in number")
    scores = (*query.shape[:-1], key.shape[-2])
    if attn_mask is not None:
        torch.broadcast_shapes(attn_mask.shape, scores)
        if torch.broadcast_shapes(attn_mask.shape, scores) != torch.Size(scores):
            raise RuntimeError("the mask is larger than the scores")
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _sizes(val: torch.Tensor) -> tuple[int, ...]:
    return tuple(meta.concrete(s, BATCH) for s in val.shape)


def _to_meta(val: Any) -> Any:
    if isinstance(val, torch.Tensor):
        return torch.empty(_sizes(val), dtype=val.dtype, device="meta")
    if isinstance(val, torch.SymInt):
        return meta.concrete(val, BATCH)
    return val
