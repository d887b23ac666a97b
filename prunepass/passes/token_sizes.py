"""What merged tokens change elsewhere in the graph: attention and means count each by its size."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from prunepass.analyse.attention import Attention
from prunepass.analyse.token_positions import BATCH, Axes
from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.splice import insert_call
from prunepass.rules.proportional import biased_mask, biased_scores, weighted_mean

_LABEL = "reduce_tokens:size_bias"


def bias_attention(graph: Graph, attention: Attention, size: Node, axes: dict[Node, Axes]) -> bool:
    """Adds log(size) to the scores of an attention, if its keys are tokens; whether they are.

    Args:
        graph: An opened graph.
        attention: One of its attentions.
        size: [B, T], how many original tokens each token stands for.
        axes: Node -> its token axes.

    Raises:
        UnsupportedGraph: It is causal and fused, which takes no bias.
    """
    node = attention.core
    rank = len(meta.shape(node) or ())
    fused = attention.probabilities is None and attention.core is attention.output
    keys = node.args[1] if fused else node.args[0]
    assert isinstance(keys, Node)
    axis = (len(meta.shape(keys) or ()) - 2) if fused else rank - 1
    offset = dict(axes.get(keys, ())).get(axis)
    if offset is None:
        return False
    if not fused:
        options = {"offset": offset, "heads": _heads_in_batch(keys)}
        scores = insert_call(graph, biased_scores, (keys, size), options, before=node, label=_LABEL)
        node.args = (scores, *node.args[1:])
        return True
    if (len(node.args) > 5 and node.args[5]) or node.kwargs.get("is_causal"):
        raise UnsupportedGraph(
            f"cannot merge tokens before {meta.module_path(node)}",
            found="causal fused attention takes no size bias",
            fix="use action `drop`",
        )
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    bias = insert_call(
        graph, biased_mask, (mask, size), {"offset": offset, "rank": rank}, before=node,
        label=_LABEL,
    )  # fmt: skip
    if len(node.args) > 3:
        node.args = (*node.args[:3], bias, *node.args[4:])
    else:
        node.kwargs = {**node.kwargs, "attn_mask": bias}
    return True


def _heads_in_batch(scores: Node) -> int:
    """How many heads share axis 0 of scores [B * heads, Q, K] with the batch, 1 for [B, ...].

    Raises:
        UnsupportedGraph: Not each image's heads lie together, or nothing tells.
    """
    heads = (meta.concrete_shape(scores, BATCH) or (BATCH,))[0] // BATCH
    if heads <= 1:
        return 1
    node = scores
    while isinstance(source := node.args[0] if node.args else None, Node):
        before, after = (meta.concrete_shape(n, BATCH) or () for n in (source, node))
        if BATCH in before:
            # Here the batch met the heads: [T, B, heads * D] -> [T, B * heads, D], batch first.
            axis = before.index(BATCH)
            if before[:axis] == after[:axis] and after[axis] == BATCH * heads:
                return heads
            break
        node = source
    raise UnsupportedGraph(
        f"cannot merge tokens before {meta.module_path(scores)}",
        found=f"{scores.target} has batch and {heads} heads on one axis, in an order not known",
        fix="use action `drop`",
    )


def weigh_mean(graph: Graph, node: Node, size: Node, axes: dict[Node, Axes]) -> None:
    """Replaces a mean over the tokens [B, T, C] by one that counts each by its size.

    Other nodes stay as they are.

    Args:
        graph: An opened graph.
        node: Any node that reads tokens.
        size: [B, T], how many original tokens each token stands for.
        axes: Node -> its token axes.
    """
    if node.target is not torch.ops.aten.mean.dim:
        return
    source, dims = node.args[0], node.args[1]
    assert isinstance(source, Node)
    assert isinstance(dims, (list, tuple))
    known = dict(axes.get(source, ()))
    keepdim = _keeps(node)
    rank = len(meta.shape(node) or ()) + (0 if keepdim else 1)
    if 1 not in known or rank != 3 or list(dims) not in ([1], [-2]):
        return
    mean = insert_call(
        graph, weighted_mean, (source, size), {"offset": known[1], "keepdim": keepdim},
        before=node, label="reduce_tokens:weighted_mean",
    )  # fmt: skip
    node.replace_all_uses_with(mean)


def _keeps(mean: Node) -> bool:
    """Whether a mean keeps the axis it averages over."""
    value: Any = mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False)
    return bool(value)
