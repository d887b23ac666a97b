"""Why tokens cannot go at a site, and what happens to them behind the last one."""

from __future__ import annotations

import torch
from torch.fx import Graph, GraphModule, Node

from prunepass.analyse.attention import find_attentions
from prunepass.analyse.token_positions import Refusal
from prunepass.analyse.token_trace import TokenTrace, trace_tokens
from prunepass.graph import meta

CARRIED = "an output of the model carries the tokens"
"""Why none can go, unless all come back before."""


def refusals_of(
    module: GraphModule,
    nodes: list[Node],
    order: dict[Node, int],
    prefix: int,
    fixed: tuple[int, ...],
    until: Node | None = None,
) -> dict[Node, str | None]:
    """For each site its refusal or None. A trace that succeeds holds for all later sites of the
    same token count; one that fails holds for all sites before the node that failed.

    Behind `until`, where all tokens are back, none can go.
    """
    refusals: dict[Node, str | None] = {}
    good: TokenTrace | None = None
    bad: tuple[int, str] | None = None
    for node in nodes:
        if node in refusals:
            continue
        if until is not None and order[node] >= order[until]:
            refusals[node] = "all tokens are back there"
            continue
        if bad is not None and order[node] < bad[0]:
            refusals[node] = bad[1]
            continue
        if good is not None and good.axes.get(node) == ((1, 0),):
            refusals[node] = None
            continue
        try:
            good = trace_tokens(module, node, prefix=prefix, fixed=fixed, until=until)
            refusals[node] = CARRIED if good.reaches_output else None
            if good.reaches_output:
                good, bad = None, (len(order), str(refusals[node]))
        except Refusal as refusal:
            reason = f"{refusal.what}: {refusal.found}"
            refusals[node] = reason
            bad = (order[refusal.node], reason)
    return refusals


def reads_prefix_only(
    module: GraphModule, last: Node, refusals: dict[Node, str | None], prefix: int
) -> bool:
    """Whether removing every token but the prefix after the last block changes nothing."""
    if prefix == 0 or refusals.get(last) is not None:
        return False
    return tokens_kept_apart(last, trace_tokens(module, last, prefix=prefix))


def tokens_kept_apart(node: Node, trace: TokenTrace) -> bool:
    """Whether behind `node` tokens never mix, and only prefix tokens are read out of them."""
    frontier, seen = [node], {node}
    while frontier:
        for user in frontier.pop().users:
            if user in seen:
                continue
            seen.add(user)
            if user not in trace.axes:
                if user.target not in (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor):
                    return False
                continue
            if not _keeps_tokens_apart(user, trace):
                return False
            frontier.append(user)
    return True


def _keeps_tokens_apart(node: Node, trace: TokenTrace) -> bool:
    """Whether each token of the result depends on the same token of the operand alone."""
    names = {
        "layer_norm",
        "linear",
        "dropout",
        "slice",
        "gelu",
        "mul",
        "add",
        "clone",
        "contiguous",
    }
    name = getattr(node.target, "__name__", "").split(".")[0]
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return (pointwise or name in names) and trace.axes[node] == ((1, 0),)


def why_none(graph: Graph) -> str:
    """What the graph has instead of attention whose result is added to a stream of tokens."""
    attentions = find_attentions(graph)
    if attentions:
        core = attentions[0].core
        return (
            f"{core.target} in {meta.module_path(core)} attends, but is added to no stream it reads"
        )
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    for node in nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return f"{node.target} in {meta.module_path(node)}: a part that is not looked into"
    for kind, names in (
        (
            "a softmax, but not between products of queries, keys and values",
            {"softmax", "_softmax"},
        ),
        (
            "a product of two activations without a softmax between two of them",
            {"matmul", "bmm", "einsum"},
        ),
        ("no product of two activations", {"linear", "conv2d", "convolution"}),
    ):
        for node in nodes:
            if getattr(node.target, "__name__", "").split(".")[0] in names:
                return f"{node.target} in {meta.module_path(node)}: {kind}"
    return "no linear layer"
