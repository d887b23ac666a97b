"""From the steps of a plan to the nodes of a graph: what is cut where, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from prunepass.analyse.refusals import CARRIED, tokens_kept_apart
from prunepass.analyse.scan import Order, token_orders
from prunepass.analyse.sites import (
    fixed_tokens,
    labelled,
    narrowed_attention,
    prefix_tokens,
    restored,
)
from prunepass.analyse.token_positions import Refusal
from prunepass.analyse.token_trace import TokenTrace, trace_tokens
from prunepass.errors import PlanError, UnsupportedGraph, nearest
from prunepass.graph import meta
from prunepass.ops.selective_scan import SCAN
from prunepass.passes.places import Places, check_places, places_of
from prunepass.plans import Step
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
        fixed: Numbers of other tokens that always stay.
        places: What is done where tokens are scanned.
        orders: Node -> which token stands where, for values whose tokens are out of order.
        table: Label -> node.
        trace: What shrinks behind the first cut.
        until: Where all tokens are back, or None.
        narrowed: Fused attentions whose queries are cut to the prefix, and the cut that says so.
    """

    cuts: tuple[Cut, ...]
    prefix: int
    fixed: tuple[int, ...]
    places: Places
    orders: Mapping[Node, Order]
    table: dict[str, Node]
    trace: TokenTrace
    until: Node | None
    narrowed: dict[Node, Cut]


def bind(module: GraphModule, steps: Sequence[Step]) -> Bound:
    """The steps on an opened program.

    Raises:
        PlanError: There is no step, or one names an unknown site, a place that another names too,
            options its rule does not have, or more tokens than there are.
        UnsupportedGraph: The graph does not allow another number of tokens at a site.
    """
    table, prefix = labelled(module.graph), prefix_tokens(module.graph)
    fixed = fixed_tokens(module.graph)
    cuts = _cuts(module, steps, table, prefix, fixed)
    until = _until(module, cuts, table)
    trace = _trace(module, cuts, table, prefix, fixed, until)
    orders = token_orders(module.graph)
    places = check_places(module.graph, [cut.step for cut in cuts], trace, orders)
    narrowed = _narrowed(cuts, table, trace)
    return Bound(cuts, prefix, fixed, places, orders, table, trace, until, narrowed)


def _cuts(
    module: GraphModule,
    steps: Sequence[Step],
    table: dict[str, Node],
    prefix: int,
    fixed: tuple[int, ...],
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
    scans = any(node.target is SCAN for node in module.graph.nodes)
    if scans and any(label.endswith(":reduce.tokens") for label in table):
        raise PlanError(
            "cannot remove tokens of a program that scans and has lost tokens already",
            found="where its tokens stood is not known any more",
            fix="put all steps into one plan",
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
        if fixed and rule(step.rule).kind != "score":
            raise PlanError(
                f"rule {step.rule!r} cannot spare a token in the middle",
                found=f"token {fixed[0]} of this model always stays",
                fix="a rule that scores tokens, such as scan-output",
            )
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes = sorted(bound, key=lambda n: order[n])
    tokens = (meta.concrete_shape(nodes[0], 2) or (0, 0))[1]
    cuts = []
    for node in nodes:
        step = bound[node]
        always = prefix + len(fixed)
        after = step.count(tokens, always)
        exact = step.rule == UNREAD and after == prefix > 0
        # A scan along one token is none.
        least = max(always + 1, 2) if step.site.endswith(".scan") or fixed else always + 1
        if not least <= after <= tokens and not exact:
            raise PlanError(
                f"cannot keep {after} tokens at {step.site}",
                found=f"{tokens} tokens arrive there, {always} of them always stay",
                fix=f"keep between {least} and {tokens}",
            )
        cuts.append(Cut(step, node, tokens, after))
        tokens = after
    return tuple(cuts)


def _until(module: GraphModule, cuts: tuple[Cut, ...], table: dict[str, Node]) -> Node | None:
    """Where all tokens are to be back.

    Raises:
        PlanError: There is no such site, or a step behind it.
    """
    site = places_of(cuts[-1].step.options).restore
    if site is None:
        return None
    node = restored(table, site)
    order = {n: i for i, n in enumerate(module.graph.nodes)}
    if order[node] <= order[cuts[-1].node]:
        raise PlanError(
            f"tokens cannot come back at {site!r}",
            found=f"a step at {cuts[-1].step.site}",
            fix="restore='block[i].output', the last block",
        )
    return node


def _trace(
    module: GraphModule,
    cuts: tuple[Cut, ...],
    table: dict[str, Node],
    prefix: int,
    fixed: tuple[int, ...],
    until: Node | None,
) -> TokenTrace:
    first = cuts[0]
    try:
        trace = _trace_before(module, first, table, prefix)
        if trace is None:
            trace = trace_tokens(module, first.node, prefix=prefix, fixed=fixed, until=until)
    except Refusal as refusal:
        raise UnsupportedGraph(
            f"cannot remove tokens at {first.step.site} ({meta.module_path(first.node)})",
            found=f"{refusal.what}: {refusal.found}",
            fix="`prunepass inspect MODEL` lists the sites and what they support",
        ) from refusal
    if trace.reaches_output:
        raise UnsupportedGraph(
            f"cannot remove tokens at {first.step.site}",
            found=f"{CARRIED}, it would change its shape",
            fix="capture a model that returns what is pooled from the tokens, or let them come "
            "back with the option restore='block[i].output'",
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
