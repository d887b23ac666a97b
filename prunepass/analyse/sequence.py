"""A program over sequences of dynamic length: which of its values run along the sequence.

Where the number of tokens is a symbol of the program, every axis that has it tells so itself; the
probing that fixed token counts need (`token_trace`) is not needed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from prunepass.analyse.token_positions import Axes
from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta

_SAME_KEYS = {
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
    torch.ops.aten.expand.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.contiguous.default,
    torch.ops.aten.repeat_interleave.self_int,
}


class Sequence:
    """The length of a program's sequences, and what is known by it.

    Args:
        graph: Of an opened or exported program.
        stream: A node [B, T, C] with a dynamic T.

    Raises:
        UnsupportedGraph: T is a plain number.
    """

    def __init__(self, graph: Graph, stream: Node) -> None:
        shape = meta.shape(stream)
        if shape is None or len(shape) != 3 or not isinstance(shape[1], torch.SymInt):
            raise UnsupportedGraph(
                "the program has no sequence of dynamic length",
                found=f"{stream.target} of shape {shape}",
                fix="capture it with a dynamic length of the prompt",
            )
        self.symbol = shape[1].node.expr
        self.stream = stream

    def axes(self, node: Node) -> Axes:
        """The axes of a node's tensor that are T long, each as (axis, 0).

        Raises:
            UnsupportedGraph: An axis depends on T without being it.
        """
        found = []
        for axis, size in enumerate(meta.shape(node) or ()):
            if isinstance(size, torch.SymInt) and self.symbol in size.node.expr.free_symbols:
                if size.node.expr != self.symbol:
                    raise _unlike(node, size)
                found.append((axis, 0))
        return tuple(found)

    def is_length(self, node: Node) -> bool:
        """Whether a node is the number T.

        Raises:
            UnsupportedGraph: It is a number that depends on T without being it.
        """
        val = meta.value(node)
        if not isinstance(val, torch.SymInt) or self.symbol not in val.node.expr.free_symbols:
            return False
        if val.node.expr != self.symbol:
            raise _unlike(node, val)
        return True


def behind(graph: Graph, source: Node) -> set[Node]:
    """All nodes whose values depend on that of `source`, itself included; sizes do not count."""
    found = {source}
    for node in graph.nodes:
        if isinstance(meta.value(node), torch.SymInt):
            continue
        if any(operand in found for operand in node.all_input_nodes):
            found.add(node)
    return found


def hoist(graph: Graph, source: Node) -> None:
    """Moves what does not depend on `source` in front of what does: masks, rotary tables."""
    after = behind(graph, source)
    first = next(n for n in graph.nodes if n in after and n.op != "placeholder")
    moving = False
    for node in list(graph.nodes):
        moving = moving or node is first
        if moving and node not in after and node.op not in ("output", "placeholder"):
            first.prepend(node)


def hoist_in_layers(program: ExportedProgram) -> None:
    """Moves what enters a layer besides the one before in front of all it does, in each layer."""
    for label, node in meta.labelled(program.graph).items():
        if label.endswith("].output:output"):
            hoist(program.graph, node)
    program.graph_module.recompile()


def between(graph: Graph, source: Node, ends: list[Node]) -> list[Node]:
    """The nodes on all ways from `source` to `ends`, in graph order, `source` left out."""
    after = behind(graph, source)
    wanted, frontier = set(ends), list(ends)
    while frontier:
        for operand in frontier.pop().all_input_nodes:
            if operand in after and operand not in wanted:
                wanted.add(operand)
                frontier.append(operand)
    return [node for node in graph.nodes if node in wanted and node in after and node is not source]


def ungrouped(node: Node) -> Node:
    """Keys or values [B, G, T, D] as they were before heads that share them got copies."""
    found = node
    while True:
        shape = meta.shape(node)
        if shape is not None and len(shape) == 4:
            found = node
        source: Any = node.args[0] if node.args else None
        sliced = node.target is torch.ops.aten.slice.Tensor and _takes_all(node)
        if not isinstance(source, Node) or not (node.target in _SAME_KEYS or sliced):
            return found
        before = meta.shape(source)
        if before is None or len(before) not in (4, 5):
            return found
        node = source


def branch_ends(graph: Graph, source: Node, addition: Node) -> tuple[Node, Node]:
    """(what enters the module of a branch behind its norm, what leaves it before the addition).

    Args:
        graph: The graph of both.
        source: Where the branch leaves the residual stream.
        addition: Where it comes back.

    Raises:
        UnsupportedGraph: The branch holds no linear layer.
    """
    ways = set(between(graph, source, [addition]))
    operands = [a for a in addition.args if isinstance(a, Node)]
    out = next((a for a in operands if a in ways), None)
    linear = [n for n in graph.nodes if n in ways and n.target is torch.ops.aten.linear.default]
    if out is None or not linear:
        raise UnsupportedGraph(
            f"cannot tell input and output of a module in {meta.module_path(addition)}",
            found="no linear layer between the residual stream and its addition",
            fix="a rule that does not read transitions, such as fastv",
        )
    entering = linear[0].args[0]
    assert isinstance(entering, Node)
    return entering, out


def _takes_all(node: Node) -> bool:
    start, end = (*node.args[2:], None, None)[:2]
    return start in (0, None) and (end is None or (isinstance(end, int) and end >= 2**62))


def _unlike(node: Node, size: Any) -> UnsupportedGraph:
    return UnsupportedGraph(
        f"the length of the sequence is reckoned with in {meta.module_path(node)}",
        found=f"{node.target} has a size of {size}",
        fix="capture a model that treats each token alike",
    )
