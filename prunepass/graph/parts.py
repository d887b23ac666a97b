"""Which part of a model each node of its program belongs to: a site, and what is done there.

Read off labels alone, so it works on any labelled program, rewritten or not.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch.fx import Graph, Node

from prunepass.graph import meta

IN_FRONT, BETWEEN, BEHIND = "in front", "between", "behind"
"""Where a node stands that belongs to no site: patches and embeddings, what blocks share, head."""
GROUPS = ("attention", "mlp", "scan", "scoring", "gather", "other")
"""What is done: branches of blocks, choosing tokens, moving and merging them, and the rest."""
_SCORING = {"reduce", "reduce.select", "reduce.score", "text_raters"}
_MOVING = ("reduce_tokens", "restore_tokens", "sequence")


class Part(NamedTuple):
    """A part of a model.

    Attributes:
        site: Label of a site, or where the node stands.
        group: One of `GROUPS`.
    """

    site: str
    group: str

    def __str__(self) -> str:
        return f"{self.site}/{self.group}"

    @property
    def layer(self) -> str:
        """`block[3]`, or where it stands."""
        return self.site.split(".")[0]

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that `str` of one gives."""
        site, _, group = text.rpartition("/")
        return cls(site, group)


def parts(graph: Graph) -> dict[Node, Part]:
    """The part of every call of a graph."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found = _reductions(graph)
    spans = _spans(graph)
    for site, (start, end) in spans.items():
        group = site.rsplit(".", 1)[1].split("[")[0]
        for node in _between(start, end, order):
            found.setdefault(node, Part(site, group))
    first = min((order[start] for start, _ in spans.values()), default=len(order))
    last = max((order[end] for _, end in spans.values()), default=-1)
    for node, place in order.items():
        if node.op == "call_function" and node not in found:
            site = BETWEEN if first < place <= last else IN_FRONT if place <= first else BEHIND
            found[node] = Part(site, "other")
    return found


def _spans(graph: Graph) -> dict[str, tuple[Node, Node]]:
    """Site -> (the stream it reads, the sum that ends it), in the order they end."""
    table = meta.labelled(graph)
    ends = {
        label.removesuffix(":output"): node
        for label, node in table.items()
        if label.endswith(":output")
    }
    return {
        site: (table[f"{site}:input"], end) for site, end in ends.items()
        if f"{site}:input" in table
    }  # fmt: skip


def _between(start: Node, end: Node, order: dict[Node, int]) -> list[Node]:
    """What leads to `end` and comes behind `start`, `end` itself with it."""
    seen, open_ = {end}, [end]
    while open_:
        for node in open_.pop().all_input_nodes:
            if order[node] > order[start] and node not in seen:
                seen.add(node)
                open_.append(node)
    return [node for node in seen if node.op == "call_function"]


def _reductions(graph: Graph) -> dict[Node, Part]:
    """What passes inserted to choose tokens and to move them."""
    found: dict[Node, Part] = {}
    site = IN_FRONT
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem and node.args[0] in found:
            found[node] = found[node.args[0]]  # re-export leaves items without labels
        for label in meta.labels(node):
            name, _, role = label.partition(":")
            if role in ("input", "output"):
                site = name
            group = _reducing(label)
            # What scores may give what is kept as well: then it has the labels of both.
            if group == "scoring" or (group == "gather" and node not in found):
                found[node] = Part(name if role.startswith("reduce") else site, group)
    return found


def _reducing(label: str) -> str:
    """`scoring` or `gather` for what a reduction does; nothing for other labels."""
    name, _, role = label.partition(":")
    if label in _SCORING or role in _SCORING:
        return "scoring"
    return "gather" if role.startswith("reduce.") or name in _MOVING else ""
