"""Where the token axis runs behind a site, and what has to shrink with it.

Everything downstream of a site is run on meta tensors with a few tokens fewer. What breaks tells
what the graph froze: an argument that carries the token count (a *frozen size*), or an operand
made elsewhere that still has all tokens (a *live-in*). What breaks and cannot be mended in exactly
one way is a reason to refuse, with the operation and the sizes named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta

BATCH = 10007
"""Stand-in for every dynamic dimension while shapes are compared: no model has such a size."""

_Path = tuple[int | str, ...]
Axes = tuple[tuple[int, int], ...]
"""Token axes of a value: (axis, offset). An axis holds `tokens + offset` entries; an offset of -1
means that the first token was sliced off, +1 that one was put in front."""

_POSITIONAL = {
    "roll", "flip", "sort", "argsort", "cumsum", "index", "index_select", "gather", "conv1d",
    "conv2d", "conv3d", "convolution", "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "constant_pad_nd", "pad", "split", "chunk", "unbind",
}  # fmt: skip
"""Operations that treat some axes by position. On a token axis they need tokens in their places."""

_ALIKE = {
    # views and copies
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "squeeze",
    "unsqueeze", "expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "transpose",
    "permute", "movedim", "swapaxes", "swapdims", "mT", "t", "contiguous", "alias", "detach", "to",
    "_to_copy", "type_as", "lift_fresh_copy", "getitem", "stack", "dropout", "feature_dropout",
    # looked at one by one in `_check_positions`
    "select", "slice", "narrow", "split_with_sizes", "cat",
    # sums over an axis
    "linear", "matmul", "bmm", "mm", "mv", "addmm", "baddbmm", "einsum", "cosine_similarity",
    "scaled_dot_product_attention", "softmax", "_softmax", "log_softmax", "layer_norm",
    "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "native_group_norm",
    "batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "sum", "mean", "amax",
    "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "norm", "logsumexp",
    "linalg_vector_norm", "all", "any", "topk",
    # entry by entry, though not tagged so
    "gelu", "hardswish", "prelu", "glu", "floor_divide", "softmin", "rrelu", "__and", "__or",
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "embedding", "_assert_tensor_metadata", "sym_size",
}  # fmt: skip
"""Operations that treat the entries of a token axis alike, wherever they stand, besides those that
torch tags as pointwise. What is neither here nor in `_POSITIONAL` is refused: a token axis that an
unknown operation reads by position would give wrong numbers without any complaint."""

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
    path: _Path
    offset: int


@dataclass(frozen=True)
class LiveIn:
    """An operand made before the site that still has all tokens, at one of its users."""

    node: Node
    path: _Path
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


class Refusal(UnsupportedGraph):
    """Tokens cannot be removed at a site; carries the node that forbids it."""

    def __init__(self, what: str, *, node: Node, found: str, fix: str | None = None) -> None:
        super().__init__(what, found=found, fix=fix)
        self.node = node


def trace_tokens(module: GraphModule, site: Node, *, prefix: int) -> TokenTrace:
    """What shrinks with the token axis (axis 1) of `site`.

    Args:
        module: An opened program.
        site: Node with a value of shape [B, T, C].
        prefix: Leading tokens that always stay; reading one of them by index is allowed.

    Raises:
        Refusal: Some operation downstream does not admit another number of tokens.
    """
    shape = meta.concrete_shape(site, BATCH)
    if shape is None or len(shape) != 3:
        raise Refusal(
            f"cannot remove tokens at {meta.module_path(site)}",
            node=site,
            found=f"{site.target} on {_shape_text(site)}: tokens are laid out on a grid, where "
            "each has its place; token reduction needs a sequence [B, T, C]",
        )
    if not isinstance(meta.shape(site)[1], int):  # type: ignore[index]
        raise Refusal(
            f"cannot remove tokens at {meta.module_path(site)}",
            node=site,
            found=f"{site.target} on {_shape_text(site)}: axis 1 is the batch; token reduction "
            "needs a sequence [B, T, C]",
        )
    tokens = shape[1]
    removable = tokens - prefix
    deltas = tuple(sorted({1, 2, removable // 2} - {0}))
    if removable < 3:
        raise Refusal(
            "too few tokens to remove any", node=site, found=f"{tokens} tokens, {prefix} prefix"
        )
    return _Probe(module, site, tokens, prefix, deltas).run()


class _Probe:
    """One run of the downstream graph at several token counts, side by side."""

    def __init__(
        self, module: GraphModule, site: Node, tokens: int, prefix: int, deltas: tuple[int, ...]
    ) -> None:
        self.module, self.prefix, self.deltas = module, prefix, deltas
        self.trace = TokenTrace(site=site, tokens=tokens)
        self.full: dict[Node, Any] = {}
        self.shrunk: dict[Node, list[Any]] = {}

    def run(self) -> TokenTrace:
        site = self.trace.site
        self._start(site)
        started = False
        for node in self.module.graph.nodes:
            started = started or node is site
            if not started or node is site:
                continue
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
            raise self._refuse(node, f"{node.op} {node.target} has tokens among its inputs")
        self._check_positions(node)
        results = self._attempt(node, {})
        if results is None:
            results = self._mend(node)
        self._record(node, results)

    def _attempt(self, node: Node, changes: dict[_Path, Any]) -> list[Any] | None:
        """Results at every token count, or None if one fails.

        `changes` maps an argument path to a function of the delta that gives its new value."""
        results = []
        for position, delta in enumerate(self.deltas):

            def convert(path: _Path, arg: Any, position: int = position, delta: int = delta) -> Any:
                if path in changes:
                    return changes[path](delta)
                if isinstance(arg, Node):
                    if arg in self.shrunk:
                        return self.shrunk[arg][position]
                    return self._full(arg)
                return arg

            args = _map(node.args, ("args",), convert)
            kwargs = _map(dict(node.kwargs), ("kwargs",), convert)
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
            raise self._refuse(
                node,
                "no change of one size or operand makes it fit"
                if not readings
                else f"{len(readings)} different changes would make it fit",
            )
        results, frozen, live_ins = readings[0]
        self.trace.frozen += frozen
        self.trace.live_ins += live_ins
        return results

    def _frozen_readings(
        self, node: Node
    ) -> Iterator[tuple[list[Any], list[FrozenSize], list[LiveIn]]]:
        if node.target in (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor):
            return
        slots: list[tuple[_Path, int]] = []

        def collect(path: _Path, arg: Any) -> Any:
            if isinstance(arg, int) and not isinstance(arg, bool) and arg > max(self.deltas):
                slots.append((path, arg))
            return arg

        _map(node.args, ("args",), collect)
        _map(dict(node.kwargs), ("kwargs",), collect)
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
        candidates: list[tuple[_Path, Node, int]] = []

        def collect(path: _Path, arg: Any) -> Any:
            if isinstance(arg, Node) and arg not in self.shrunk:
                full = self._full(arg)
                if isinstance(full, torch.Tensor):
                    for axis, size in enumerate(full.shape):
                        if size in sizes:
                            candidates.append((path, arg, axis))
            return arg

        _map(node.args, ("args",), collect)
        _map(dict(node.kwargs), ("kwargs",), collect)
        for count in range(1, len(candidates) + 1):
            found = False
            for subset in itertools.combinations(candidates, count):
                chosen: dict[_Path, list[int]] = {}
                sources: dict[_Path, Node] = {}
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
        if _op_name(node) not in _BROADCASTING:
            raise self._refuse(node, "a weight is tied to token positions")

    def _check_positions(self, node: Node) -> None:
        """Refuses what reads a token axis by position, other than prefix tokens in front."""
        name = _op_name(node)
        if name == "cat":
            self._check_cat(node)
        elif name not in _POSITIONAL | _ALIKE and torch.Tag.pointwise not in _tags(node):
            raise self._refuse(node, "not known to treat all tokens alike")
        source = next(
            (a for a in node.args if isinstance(a, Node) and self.trace.axes.get(a)), None
        )
        if source is None:
            return
        axes = dict(self.trace.axes[source])
        shape = meta.concrete_shape(source, BATCH)
        assert shape is not None
        rank = len(shape)
        args: Any = (*node.args, *(None,) * (5 - len(node.args)))
        if name == "select":
            axis, index = args[1] % rank, args[2]
            if axis in axes and not 0 <= index < self.prefix + axes[axis]:
                raise self._refuse(node, f"reads token {index}, which may be removed")
        elif name in ("slice", "narrow"):
            axis = (args[1] or 0) % rank
            start, end, step = args[2:5]
            if name == "narrow":
                end, step = start + end, None
            if axis in axes:
                self._check_slice(node, start, end, step, shape[axis], axes[axis])
        elif name == "split_with_sizes":
            axis = (args[2] or 0) % rank
            if axis in axes and sum(args[1][:-1]) > self.prefix + axes[axis]:
                raise self._refuse(node, f"splits tokens into {list(args[1])}")
        elif name in _POSITIONAL and any(a in axes for a in _positional_axes(node, rank)):
            raise self._refuse(node, "treats tokens by their position")
        elif name == "sum":
            self._check_mean(node, axes, shape)

    def _check_cat(self, node: Node) -> None:
        """Refuses tokens with something behind them: they must come last to be counted."""
        parts: Any = node.args[0]
        rank = len(meta.shape(node) or ())
        axis = _axis(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0), rank)
        for part in parts[:-1]:
            if axis in dict(self.trace.axes.get(part, ())):
                raise self._refuse(node, "puts something behind the tokens")

    def _check_mean(self, node: Node, axes: dict[int, int], shape: tuple[int, ...]) -> None:
        """Refuses a mean written as a sum over tokens and a division by their number."""
        dims: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
        counts = {shape[_axis(d, len(shape))] for d in dims if _axis(d, len(shape)) in axes}
        for user in node.users:
            by = [a for a in user.args if isinstance(a, (int, float)) and a]
            if _op_name(user) in ("div", "mul") and by and {by[0], 1 / by[0]} & counts:
                raise self._refuse(user, "divides a sum by the number of tokens; use mean")

    def _check_slice(
        self, node: Node, start: Any, end: Any, step: Any, size: int, offset: int
    ) -> None:
        start = 0 if start is None else start
        end = size if end is None else min(end, size)
        limit = self.prefix + offset
        if isinstance(start, Node) or isinstance(end, Node):
            raise self._refuse(node, "slices tokens at a position computed at run time")
        if start < 0 or end < 0 or step not in (None, 1):
            raise self._refuse(node, "slices tokens from the end or in strides")
        if end <= limit:
            return
        if start > limit or end != size:
            raise self._refuse(node, f"slices tokens {start} to {end} of {size}")

    def _record(self, node: Node, results: list[Any]) -> None:
        axes = self._axes_of(node, results)
        if axes is None:
            raise self._refuse(node, "its result does not shrink by one entry a token")
        if not self._keeps_apart(node, results):
            raise self._refuse(node, "it mixes tokens with another axis")
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
        if _op_name(node) not in _VIEWS or not isinstance(source, Node):
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

    def _refuse(self, node: Node, why: str) -> Refusal:
        tensors = [n for n in node.all_input_nodes if meta.shape(n) is not None]
        operands = ", ".join(_shape_text(n) for n in tensors)
        return Refusal(
            f"cannot remove tokens before {meta.module_path(node)}",
            node=node,
            found=f"{node.target} on {operands}: {why}",
        )


def substitute(value: Any, path: _Path, new: Any) -> Any:
    """`value` (nested tuples, lists, dicts) with the entry at `path` replaced."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {k: substitute(v, rest, new) if k == head else v for k, v in value.items()}
    items = [substitute(v, rest, new) if i == head else v for i, v in enumerate(value)]
    return tuple(items) if isinstance(value, tuple) else items


def replace_argument(node: Node, path: _Path, new: Any) -> None:
    """Sets the argument of a node at a path that starts with `args` or `kwargs`."""
    if path[0] == "args":
        node.args = substitute(tuple(node.args), path[1:], new)
    else:
        node.kwargs = substitute(dict(node.kwargs), path[1:], new)


def _map(value: Any, path: _Path, function: Any) -> Any:
    if isinstance(value, dict):
        return {k: _map(v, (*path, k), function) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_map(v, (*path, i), function) for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    return function(path, value)


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


def _op_name(node: Node) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    return str(name).split(".")[0].rstrip("_")


def _positional_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes of the first operand that an operation treats by position."""
    name = _op_name(node)
    args: Any = (*node.args, *(None,) * (3 - len(node.args)))
    if name.startswith("conv"):
        kernel = (meta.concrete_shape(args[1], BATCH) or ())[2:]
        return tuple(rank - len(kernel) + i for i, size in enumerate(kernel) if size != 1)
    if name.startswith("adaptive"):
        sizes = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        return tuple(rank - len(sizes) + i for i, size in enumerate(sizes) if size != 1)
    if "pool" in name:
        return tuple(range(rank - int(name[-2]), rank))
    if name in ("pad", "constant_pad_nd"):
        pads = args[1]
        return tuple(rank - 1 - i // 2 for i, size in enumerate(pads) if size != 0)
    if name == "index":
        return tuple(i for i, index in enumerate(args[1]) if index is not None)
    if name in ("roll", "split", "chunk"):
        dims = args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    else:
        dims = args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    return tuple(_axis(d, rank) for d in dims)


def _axis(dim: Any, rank: int) -> int:
    return int(dim) % rank


def _tags(node: Node) -> list[torch.Tag]:
    return list(getattr(node.target, "tags", ()))


def _shape_text(node: Node) -> str:
    """Shape of a node's tensor as text, with B for a dynamic size."""
    sizes = meta.shape(node) or ()
    return "[" + ", ".join(str(s) if isinstance(s, int) else "B" for s in sizes) + "]"


def _sizes(val: torch.Tensor) -> tuple[int, ...]:
    return tuple(meta.concrete(s, BATCH) for s in val.shape)


def _to_meta(val: Any) -> Any:
    if isinstance(val, torch.Tensor):
        return torch.empty(_sizes(val), dtype=val.dtype, device="meta")
    if isinstance(val, torch.SymInt):
        return meta.concrete(val, BATCH)
    return val
