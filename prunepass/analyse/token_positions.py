"""Which operations treat all tokens alike, and which read them by their place."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.fx import Node

from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta

BATCH = 10007
"""Stand-in for every dynamic dimension while shapes are compared: no model has such a size."""

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
    # looked at one by one in `check_positions`
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
    # know the places of tokens, and are told of those that are missing
    "selective_scan", "line_convolution", "grid_convolution", "reorder_tokens",
}  # fmt: skip
"""Operations that treat the entries of a token axis alike, wherever they stand, besides those that
torch tags as pointwise. What is neither here nor in `_POSITIONAL` is refused: a token axis that an
unknown operation reads by position would give wrong numbers without any complaint."""


class Refusal(UnsupportedGraph):
    """Tokens cannot be removed at a site; carries the node that forbids it."""

    def __init__(self, what: str, *, node: Node, found: str, fix: str | None = None) -> None:
        super().__init__(what, found=found, fix=fix)
        self.node = node


def refuse(node: Node, why: str) -> Refusal:
    """The refusal of a node, with operation and operands named."""
    tensors = [n for n in node.all_input_nodes if meta.shape(n) is not None]
    operands = ", ".join(shape_text(n) for n in tensors)
    return Refusal(
        f"cannot remove tokens before {meta.module_path(node)}",
        node=node,
        found=f"{node.target} on {operands}: {why}",
    )


def check_positions(
    node: Node, all_axes: Mapping[Node, Axes], prefix: int, fixed: Collection[int] = ()
) -> None:
    """Nothing, if a node treats the tokens among its operands alike, wherever they stand.

    Args:
        node: A node that reads tokens.
        all_axes: Node -> its token axes, see `TokenTrace`.
        prefix: Leading tokens that always stay; reading one of them by index is allowed.
        fixed: Numbers of other tokens that always stay.

    Raises:
        Refusal: It reads a token axis by position, or is not known.
    """
    name = op_name(node)
    if name == "cat":
        _check_cat(node, all_axes)
    elif name not in _POSITIONAL | _ALIKE and torch.Tag.pointwise not in _tags(node):
        raise refuse(node, "not known to treat all tokens alike")
    source = next((a for a in node.args if isinstance(a, Node) and all_axes.get(a)), None)
    if source is None:
        return
    axes = dict(all_axes[source])
    shape = meta.concrete_shape(source, BATCH)
    assert shape is not None
    rank = len(shape)
    args: Any = (*node.args, *(None,) * (5 - len(node.args)))
    if name == "select":
        axis, index = args[1] % rank, args[2]
        stays = 0 <= index < prefix + axes.get(axis, 0) or (index in fixed and axis == 1)
        if axis in axes and not stays:
            raise refuse(node, f"reads token {index}, which may be removed")
    elif name in ("slice", "narrow"):
        axis = (args[1] or 0) % rank
        start, end, step = args[2:5]
        if name == "narrow":
            end, step = start + end, None
        if axis in axes:
            _check_slice(node, start, end, step, size=shape[axis], limit=prefix + axes[axis])
    elif name == "split_with_sizes":
        axis = (args[2] or 0) % rank
        if axis in axes and sum(args[1][:-1]) > prefix + axes[axis]:
            raise refuse(node, f"splits tokens into {list(args[1])}")
    elif name in _POSITIONAL and any(a in axes for a in _positional_axes(node, rank)):
        raise refuse(node, "treats tokens by their position")
    elif name == "sum":
        _check_mean(node, axes, shape)


def _check_cat(node: Node, all_axes: Mapping[Node, Axes]) -> None:
    """Refuses tokens with something behind them: they must come last to be counted."""
    parts: Any = node.args[0]
    rank = len(meta.shape(node) or ())
    axis = _axis(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0), rank)
    for part in parts[:-1]:
        if axis in dict(all_axes.get(part, ())):
            raise refuse(node, "puts something behind the tokens")


def _check_mean(node: Node, axes: dict[int, int], shape: tuple[int, ...]) -> None:
    """Refuses a mean written as a sum over tokens and a division by their number."""
    dims: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    counts = {shape[_axis(d, len(shape))] for d in dims if _axis(d, len(shape)) in axes}
    for user in node.users:
        by = [a for a in user.args if isinstance(a, (int, float)) and a]
        if op_name(user) in ("div", "mul") and by and {by[0], 1 / by[0]} & counts:
            raise refuse(user, "divides a sum by the number of tokens; use mean")


def _check_slice(node: Node, start: Any, end: Any, step: Any, *, size: int, limit: int) -> None:
    """Refuses a slice of tokens other than the prefix tokens or all behind some of them."""
    start = 0 if start is None else start
    end = size if end is None else min(end, size)
    if isinstance(start, Node) or isinstance(end, Node):
        raise refuse(node, "slices tokens at a position computed at run time")
    if start < 0 or end < 0 or step not in (None, 1):
        raise refuse(node, "slices tokens from the end or in strides")
    if end <= limit:
        return
    if start > limit or end != size:
        raise refuse(node, f"slices tokens {start} to {end} of {size}")


def op_name(node: Node) -> str:
    """Name of the operation without overload and in-place mark, e.g. `add`."""
    name = getattr(node.target, "__name__", str(node.target))
    return str(name).split(".")[0].rstrip("_")


def _positional_axes(node: Node, rank: int) -> tuple[int, ...]:
    """The axes of the first operand that an operation treats by position."""
    name = op_name(node)
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


def shape_text(node: Node) -> str:
    """Shape of a node's tensor as text, with B for a dynamic size."""
    sizes = meta.shape(node) or ()
    return "[" + ", ".join(str(s) if isinstance(s, int) else "B" for s in sizes) + "]"
