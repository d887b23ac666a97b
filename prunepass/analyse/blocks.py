"""Blocks and residual branches of an opened program: where they begin, end, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from prunepass.analyse.sites import labelled
from prunepass.graph import meta

_aten = torch.ops.aten
NORMS = frozenset(
    {
        _aten.layer_norm.default,
        _aten.native_layer_norm.default,
        _aten.rms_norm.default,
        _aten.dropout.default,
        _aten.clone.default,
        _aten.contiguous.default,
    }
)
"""What may stand between the branches of a block, and goes with it: norms behind additions."""
_PRODUCTS: dict[Any, int] = {_aten.linear.default: 1, _aten.matmul.default: 1, _aten.mm.default: 1,
             _aten.addmm.default: 2}  # fmt: skip
_BRANCH = re.compile(r"block\[(\d+)\]\.(attention|mlp(?:\[\d+\])?):output")


@dataclass(frozen=True)
class Branch:
    """One residual branch.

    Attributes:
        site: Its label, e.g. `block[3].mlp`.
        block: Number of its block.
        kind: `attention` or `mlp`.
        source: The stream in front of it.
        node: The addition that ends it.
        added: What is added.
        inside: All nodes of the branch.
        weights: Names of the matrices its linear layers hold, in graph order.
        hidden: What enters its last linear layer, [B, T, M], or None.
    """

    site: str
    block: int
    kind: str
    source: Node
    node: Node
    added: Node
    inside: frozenset[Node]
    weights: tuple[str, ...]
    hidden: Node | None


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        site: Its label, e.g. `block[3]`.
        number: 3.
        branches: In graph order.
        source: The stream that enters it.
        end: The stream that leaves it, norms behind its last addition included.
        obstacle: What else than branches and norms lies between the two, or None.
    """

    site: str
    number: int
    branches: tuple[Branch, ...]
    source: Node
    end: Node
    obstacle: str | None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the matrices its branches hold."""
        return tuple(name for branch in self.branches for name in branch.weights)


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """The blocks of an opened program, by number.

    Args:
        graph: Of a labelled program, opened: its weights are `get_attr` nodes.
    """
    table = labelled(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[int, list[Branch]] = {}
    for label in table:
        match = _BRANCH.fullmatch(label)
        if match is not None:
            branch = _branch(table, label.removesuffix(":output"), int(match[1]), order)
            found.setdefault(branch.block, []).append(branch)
    groups = [
        (number, tuple(sorted(branches, key=lambda b: order[b.node])))
        for number, branches in sorted(found.items())
    ]
    ends = _ends([branches for _, branches in groups])
    return tuple(
        Block(
            site=f"block[{number}]",
            number=number,
            branches=branches,
            source=branches[0].source,
            end=end,
            obstacle=obstacle or _obstacle(branches, end),
        )
        for (number, branches), (end, obstacle) in zip(groups, ends, strict=True)
    )


def _branch(table: Mapping[str, Node], site: str, block: int, order: Mapping[Node, int]) -> Branch:
    source, node = table[f"{site}:input"], table[f"{site}:output"]
    first, second = node.args[:2]
    assert isinstance(first, Node)
    # A stream may be cast to its own type on its way: Llama's is, where it is added.
    added = second if meta.uncast(first) is source else first
    assert isinstance(added, Node)
    inside = ancestors(added) - ancestors(source)
    nodes = sorted(inside, key=lambda n: order[n])
    kind = site.split(".", 1)[1].split("[")[0]
    products = [n for n in nodes if n.target in _PRODUCTS]
    weights = [w for n in products if (w := _weight(n)) is not None]
    linear = [n for n in products if _weight(n) is not None]
    hidden = linear[-1].args[0] if linear and linear[-1].target is _aten.linear.default else None
    return Branch(
        site=site,
        block=block,
        kind=kind,
        source=source,
        node=node,
        added=added,
        inside=frozenset(inside),
        weights=tuple(dict.fromkeys(weights)),
        hidden=hidden if isinstance(hidden, Node) else None,
    )


def ancestors(node: Node) -> set[Node]:
    """A node and all it is computed from."""
    found, frontier = {node}, [node]
    while frontier:
        for operand in frontier.pop().all_input_nodes:
            if operand not in found:
                found.add(operand)
                frontier.append(operand)
    return found


def _weight(node: Node) -> str | None:
    """Name of the matrix a product multiplies with, None where both operands are computed."""
    operand = node.args[_PRODUCTS[node.target]]
    while isinstance(operand, Node) and operand.op == "call_function" and operand.target in (
        _aten.t.default, _aten.transpose.int, _aten.permute.default
    ):  # fmt: skip
        operand = operand.args[0]
    if isinstance(operand, Node) and operand.op == "get_attr":
        return str(operand.target)
    return None


def _ends(groups: list[tuple[Branch, ...]]) -> list[tuple[Node, str | None]]:
    """Where each block ends, and what stands between it and the next one besides norms."""
    found: list[tuple[Node, str | None]] = []
    for branches, following in zip(groups, [*groups[1:], None], strict=True):
        last = branches[-1].node
        if following is None:
            # Norms behind the additions: if all other blocks end with one, so does the last.
            behind = [n for n in last.users if n.target in NORMS]
            normed = all(
                end is not group[-1].node for (end, _), group in zip(found, groups, strict=False)
            )
            ends_so = bool(found) and normed and len(last.users) == len(behind) == 1
            found.append((behind[0] if ends_so else last, None))
            continue
        entry = following[0].source
        if _through_norms(entry, last):
            found.append((entry, None))
        elif last in ancestors(entry) and entry not in branches[-1].inside:
            found.append((last, f"{entry.target} between this block and the next"))
        else:
            found.append((last, None))
    return found


def _through_norms(node: Node, goal: Node) -> bool:
    """Whether a node is `goal`, or comes from it through norms alone."""
    while node is not goal:
        if node.op != "call_function" or node.target not in NORMS:
            return False
        operand = node.args[0]
        if not isinstance(operand, Node):
            return False
        node = operand
    return True


def _obstacle(branches: tuple[Branch, ...], end: Node) -> str | None:
    """What lies between the ends of a block besides its branches and norms."""
    sources = {branch.node: branch.source for branch in branches}
    node = end
    while node is not branches[0].source:
        if node in sources:
            node = sources[node]
        elif node.op == "call_function" and node.target in NORMS and isinstance(node.args[0], Node):
            node = node.args[0]
        else:
            return f"{node.target} between its branches"
    return None
