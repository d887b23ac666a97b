"""From the steps of a plan to the nodes of a graph: what is cut where, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from prunepass.analyse.sites import (
    labelled,
    narrowed_attention,
    prefix_tokens,
    tokens_kept_apart,
)
from prunepass.analyse.token_positions import Refusal
from prunepass.analyse.token_trace import TokenTrace, trace_tokens
from prunepass.errors import PlanError, UnsupportedGraph, nearest
from prunepass.graph import meta
from prunepass.plan import Step
from prunepass.rules.table import UNREAD, check_options, rule


@dataclass(frozen=True)
class Cut:
    """A step bound to the graph.

    Attributes:
        step: The step.
        node: Where its site ends.
        before: Tokens that arrive.
        after: Tokens that stay, prefix tokens included.
    """

    step: Step
    node: Node
    before: int
    after: int


@dataclass(frozen=True)
class Bound:
    """All steps of one plan, bound to one graph.

    Attributes:
        cuts: In graph order.
        prefix: Leading tokens that always stay.
        table: Label -> node.
        trace: What shrinks behind the first cut.
        narrowed: Fused attentions whose queries are cut to the prefix, and the cut that says so.
    """

    cuts: tuple[Cut, ...]
    prefix: int
    table: dict[str, Node]
    trace: TokenTrace
    narrowed: dict[Node, Cut]


def bind(module: GraphModule, steps: Sequence[Step]) -> Bound:
    """The steps on an opened program.

    Raises:
        PlanError: There is no step, or one names an unknown site, a place that another names too,
            options its rule does not have, or more tokens than there are.
        UnsupportedGraph: The graph does not allow another number of tokens at a site.
    """
    table, prefix = labelled(module.graph), prefix_tokens(module.graph)
    cuts = _cuts(module, steps, table, prefix)
    trace = _trace(module, cuts, table, prefix)
    return Bound(cuts, prefix, table, trace, _narrowed(cuts, table, trace))


def _cuts(
    module: GraphModule, steps: Sequence[Step], table: dict[str, Node], prefix: int
) -> tuple[Cut, ...]:
    if not steps:
        raise PlanError("no step to apply", found="0 steps", fix="plan at least one step")
    merged = any(label.endswith(":reduce.merge") for label in table)
    if merged and any(step.action == "merge" for step in steps):
        # How many tokens each stands for is known inside one plan only.
        raise PlanError(
            "cannot merge tokens of a program that merges tokens already",
            found="its merged tokens would count as one each",
            fix="put all merging steps into one plan, or use action `drop`",
        )
    bound: dict[Node, Step] = {}
    for step in steps:
        node = table.get(f"{step.site}:output")
        if node is None:
            known = [k.removesuffix(":output") for k in table if k.endswith(":output")]
            raise PlanError(
                f"unknown site {step.site!r}",
                found=f"{len(known)} sites in this program",
                fix=f"one of {', '.join(nearest(step.site, known).split(', ')[:5])}",
            )
        if node in bound:
            raise PlanError(
                "two steps reduce tokens at the same place",
                found=f"{bound[node].site} and {step.site}",
                fix="`block[i].output` is where the last branch of block i ends",
            )
        bound[node] = step
        check_options(rule(step.rule), step.options)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes = sorted(bound, key=lambda n: order[n])
    tokens = (meta.concrete_shape(nodes[0], 2) or (0, 0))[1]
    cuts = []
    for node in nodes:
        step = bound[node]
        after = step.count(tokens, prefix)
        exact = step.rule == UNREAD and after == prefix > 0
        if not prefix < after <= tokens and not exact:
            raise PlanError(
                f"cannot keep {after} tokens at {step.site}",
                found=f"{tokens} tokens arrive there, {prefix} of them prefix tokens",
                fix=f"keep between {prefix + 1} and {tokens}",
            )
        cuts.append(Cut(step, node, tokens, after))
        tokens = after
    return tuple(cuts)


def _trace(
    module: GraphModule, cuts: tuple[Cut, ...], table: dict[str, Node], prefix: int
) -> TokenTrace:
    first = cuts[0]
    try:
        trace = _trace_before(module, first, table, prefix)
        if trace is None:
            trace = trace_tokens(module, first.node, prefix=prefix)
    except Refusal as refusal:
        raise UnsupportedGraph(
            f"cannot remove tokens at {first.step.site} ({meta.module_path(first.node)})",
            found=f"{refusal.what}: {refusal.found}",
            fix="`prunepass inspect MODEL` lists the sites and what they support",
        ) from refusal
    if trace.reaches_output:
        raise UnsupportedGraph(
            f"cannot remove tokens at {first.step.site}",
            found="an output of the model carries the tokens, it would change its shape",
            fix="capture a model that returns what is pooled from the tokens",
        )
    for cut in cuts:
        if trace.axes.get(cut.node) != ((1, 0),):
            raise UnsupportedGraph(
                f"cannot remove tokens at {cut.step.site} together with {first.step.site}",
                found="the two are not on one token stream",
                fix="reduce tokens at one of the two only",
            )
    return trace


def _trace_before(
    module: GraphModule, first: Cut, table: dict[str, Node], prefix: int
) -> TokenTrace | None:
    """The trace from in front of an attention, where the first step may narrow that one."""
    start = table.get(f"{first.step.site}:input")
    core = narrowed_attention(table, first.step.site)
    if first.step.rule != UNREAD or start is None or core is None:
        return None
    try:
        trace = trace_tokens(module, start, prefix=prefix)
    except Refusal:
        return None
    return trace if trace.axes.get(first.node) == ((1, 0),) else None


def _narrowed(cuts: tuple[Cut, ...], table: dict[str, Node], trace: TokenTrace) -> dict[Node, Cut]:
    found = {}
    for cut in cuts:
        if cut.step.rule != UNREAD:
            continue
        if not tokens_kept_apart(cut.node, trace):
            raise PlanError(
                f"rule {UNREAD!r} does not fit {cut.step.site}",
                found="other tokens than the prefix are read behind it",
                fix="use it at the last attention of a model that reads its class token only",
            )
        core = narrowed_attention(table, cut.step.site)
        if core is not None and core in trace.axes:
            found[core] = cut
    return found
