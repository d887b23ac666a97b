"""One reduction: the tokens that arrive at a cut, scored and selected, then dropped or merged."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Graph, Node

from prunepass.graph.splice import insert_call
from prunepass.passes.bind_steps import Cut
from prunepass.passes.rule_inputs import RuleInputs, item
from prunepass.rules.merge import gather_tokens, merge_tokens
from prunepass.rules.prefix import first_positions, first_tokens
from prunepass.rules.table import UNREAD, select


@dataclass(frozen=True)
class Reduced:
    """The tokens behind a cut.

    Attributes:
        tokens: [B, K, C].
        kept: [B, K] int64, their positions among those that arrive.
        size: [B, K], how many original tokens each stands for; None while all count one.
        told: Label -> what an engine can be asked for.
    """

    tokens: Node
    kept: Node
    size: Node | None
    told: dict[str, Node] = field(default_factory=dict)


def insert_reduction(
    graph: Graph, cut: Cut, inputs: RuleInputs, *, size: Node | None, prefix: int, at: Node
) -> Reduced:
    """A reduction in a graph.

    Args:
        graph: The opened graph.
        cut: What is to be done where.
        inputs: Finds what the rule asks for.
        size: [B, T], how many original tokens each that arrives stands for; None for one each.
        prefix: Leading tokens that always stay.
        at: The node it is put in front of, behind the one that is cut.

    Raises:
        PlanError: The site does not have what the rule asks for.
    """
    step, label = cut.step, f"{cut.step.site}:reduce"
    if step.rule == UNREAD:
        return _only_prefix(graph, cut, label, size=size, prefix=prefix, at=at)
    selection = insert_call(
        graph, select, (step.rule, inputs.of(cut)),
        {"keep": cut.after, "prefix": prefix, **step.options},
        before=at, label=f"{label}.select",
    )  # fmt: skip
    kept = item(graph, selection, 0, at, f"{label}.kept")
    told = {f"{label}.kept": kept}
    if step.action == "merge":
        for i, what in ((1, "dropped"), (2, "target")):
            name = f"{label}.{what}"
            told[name] = item(graph, selection, i, at, name)
        merged = insert_call(
            graph, merge_tokens, (cut.node, inputs.sizes(cut, at), selection),
            before=at, label=f"{label}.merge",
        )  # fmt: skip
        tokens = item(graph, merged, 0, at, f"{label}.tokens")
        return Reduced(tokens, kept, item(graph, merged, 1, at, f"{label}.size"), told)
    tokens = insert_call(graph, gather_tokens, (cut.node, kept), before=at, label=f"{label}.tokens")
    if size is not None:
        size = insert_call(graph, gather_tokens, (size, kept), before=at, label=f"{label}.size")
    return Reduced(tokens, kept, size, told)


def _only_prefix(
    graph: Graph, cut: Cut, label: str, *, size: Node | None, prefix: int, at: Node
) -> Reduced:
    """Keeps the prefix tokens only: a slice, no scores."""
    kept = insert_call(graph, first_positions, (cut.node, prefix), before=at, label=f"{label}.kept")
    tokens = insert_call(
        graph, first_tokens, (cut.node, prefix), before=at, label=f"{label}.tokens"
    )
    if size is not None:
        size = insert_call(graph, first_tokens, (size, prefix), before=at, label=f"{label}.size")
    return Reduced(tokens, kept, size)
