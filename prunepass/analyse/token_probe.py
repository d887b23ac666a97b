"""What is behind a site run on meta tensors with fewer tokens, at several counts side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from prunepass.analyse.token_positions import BATCH, Axes, op_name, refuse
from prunepass.graph import meta
from prunepass.graph.arguments import Path, map_arguments

VIEWS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as"}
"""Operations that read the same entries in another shape."""

Change = Callable[[int], Any]
"""From a number of tokens that are gone to the value of an argument."""


class Probe:
    """Values behind a site at several token counts.

    Args:
        module: An opened program.
        site: Node of shape [B, T, C] whose tokens go.
        tokens: How many it has.
        deltas: How many of them are gone in each run, rising.
    """

    def __init__(
        self, module: GraphModule, site: Node, *, tokens: int, deltas: tuple[int, ...]
    ) -> None:
        self.tokens, self.deltas = tokens, deltas
        self.axes: dict[Node, Axes] = {site: ((1, 0),)}
        """Node -> its token axes; none for a node with several outputs."""
        self._module = module
        self._full: dict[Node, Any] = {}
        whole = self.full(site)
        self._shrunk: dict[Node, list[Any]] = {
            site: [_shorter(whole, {1}, delta) for delta in deltas]
        }

    def __contains__(self, node: Node) -> bool:
        """Whether fewer tokens make the value of a node smaller."""
        return node in self._shrunk

    def attempt(self, node: Node, changes: Mapping[Path, Change]) -> list[Any] | None:
        """Results of a node at every token count with some arguments changed, None if one fails."""
        results = []
        for position, delta in enumerate(self.deltas):

            def convert(path: Path, arg: Any, position: int = position, delta: int = delta) -> Any:
                if path in changes:
                    return changes[path](delta)
                if isinstance(arg, Node):
                    return self._shrunk[arg][position] if arg in self else self.full(arg)
                return arg

            args = map_arguments(node.args, ("args",), convert)
            kwargs = map_arguments(dict(node.kwargs), ("kwargs",), convert)
            kwargs.pop("device", None) if isinstance(kwargs, dict) else None
            try:
                results.append(_call(node, args, kwargs))
            except (RuntimeError, IndexError, ValueError, TypeError):
                return None
        return results

    def fits(self, node: Node, results: list[Any]) -> bool:
        """Whether results shrink by one entry a token and keep tokens apart."""
        return self._axes_of(node, results) is not None and self._keeps_apart(node, results)

    def shrinks(self, node: Node, results: list[Any]) -> bool:
        """Whether results shrink by one entry a token, or not at all."""
        return self._axes_of(node, results) is not None

    def record(self, node: Node, results: list[Any]) -> None:
        """Takes results as the values of a node.

        Raises:
            Refusal: They do not shrink with the tokens, or tokens are mixed with another axis.
        """
        axes = self._axes_of(node, results)
        if axes is None:
            raise refuse(node, "its result does not shrink by one entry a token")
        if not self._keeps_apart(node, results):
            raise refuse(node, "it mixes tokens with another axis")
        if isinstance(axes, list):
            if any(axes):
                self._shrunk[node] = results
                self.axes[node] = ()
        elif axes:
            self._shrunk[node] = results
            self.axes[node] = axes

    def full(self, node: Node) -> Any:
        """The value of a node with all tokens, on the meta device."""
        if node not in self._full:
            if node.op == "get_attr":
                attribute: Any = self._module
                for part in str(node.target).split("."):
                    attribute = getattr(attribute, part)
                self._full[node] = (
                    attribute.to("meta") if isinstance(attribute, torch.Tensor) else attribute
                )
            else:
                self._full[node] = torch.utils._pytree.tree_map(_to_meta, meta.value(node))
        return self._full[node]

    def shorter(self, node: Node, axes: list[int]) -> Change:
        """The value of a node as a change: some axes shrunk by the tokens that are gone."""
        full = self.full(node)
        return lambda delta: _shorter(full, set(axes), delta)

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
                axes.append((axis, size - self.tokens))
            elif any(change):
                return None
        return tuple(axes)

    def _keeps_apart(self, node: Node, results: list[Any]) -> bool:
        """Whether a view leaves each token's entries together.

        It does where as many entries precede the token axis as before. That also tells the token
        axis from another of the same length: [B, 16, 4, 4] viewed as [B, 16, 16]."""
        source = node.args[0] if node.args else None
        if op_name(node) not in VIEWS or not isinstance(source, Node):
            return True
        before = meta.concrete_shape(source, BATCH) or ()
        after = meta.concrete_shape(node, BATCH) or ()
        known = {(before[a], prod(before[:a])) for a, _ in self.axes.get(source, ())}
        found = self._axes_of(node, results) or ()
        return all((after[a], prod(after[:a])) in known for a, _ in found)


def _shorter(full: torch.Tensor, axes: set[int], delta: int) -> torch.Tensor:
    shape = [size - delta if axis in axes else size for axis, size in enumerate(full.shape)]
    return torch.empty(shape, dtype=full.dtype, device="meta")


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
    if attn_mask is not None and torch.broadcast_shapes(attn_mask.shape, scores) != scores:
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
