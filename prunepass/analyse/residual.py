"""Recognising the residual stream: additions of a branch to what the branch was computed from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from prunepass.analyse.attention import Attention
from prunepass.analyse.scan import Scan
from prunepass.graph import meta

_ADDITIONS = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_LINEAR = {torch.ops.aten.linear.default, torch.ops.aten.matmul.default}


@dataclass(frozen=True)
class Residual:
    """One residual addition.

    Attributes:
        kind: `attention` if its branch attends, `scan` if it scans, else `mlp`.
        node: The addition, [B, T, C]; [B, H, W, C] or [B, C, H, W] where tokens lie on a grid.
        source: The stream before it, of the same shape.
        attentions: Attentions inside the branch, in graph order.
        scans: Scans inside the branch, in graph order.
    """

    kind: str
    node: Node
    source: Node
    attentions: tuple[Attention, ...] = ()
    scans: tuple[Scan, ...] = ()


def find_residuals(
    graph: Graph, attentions: list[Attention], scans: list[Scan] | None = None
) -> list[Residual]:
    """The residual additions of token streams, sequences or grids, in graph order.

    An addition of two tensors of equal shape is residual if one operand was computed from the
    other, or from what the other was added to (parallel branches: (x + f(x)) + g(x)). Its branch is
    everything between the two. Branches that neither attend nor scan nor hold a linear layer
    (position convolutions, for one) are left out.
    """
    nodes = list(graph.nodes)
    bit = {node: 1 << i for i, node in enumerate(nodes)}
    before: dict[Node, int] = {}
    for node in nodes:
        ancestors = 0
        for operand in node.all_input_nodes:
            ancestors |= before[operand] | bit[operand]
        before[node] = ancestors
    linear = sum(bit[n] for n in nodes if n.op == "call_function" and n.target in _LINEAR)
    cores = {a: bit[a.core] for a in attentions}
    recurrences = {s: bit[s.core] for s in scans or ()}
    found: list[Residual] = []
    root: dict[Node, Node] = {}
    for node in nodes:
        if node.op != "call_function" or node.target not in _ADDITIONS:
            continue
        operands = node.args[:2]
        if not all(isinstance(o, Node) for o in operands):
            continue
        shapes = [meta.shape(o) for o in operands]  # type: ignore[arg-type]
        if shapes[0] is None or len(shapes[0]) not in (3, 4) or shapes[0] != shapes[1]:
            continue
        for source, end in (operands, operands[::-1]):
            source = meta.uncast(source)  # type: ignore[arg-type]
            start = root.get(source, source)  # type: ignore[arg-type]
            if before[end] & (bit[source] | bit[start]):  # type: ignore[index]
                branch = (before[end] | bit[end]) & ~before[source] & ~bit[source]  # type: ignore[index]
                root[node] = source if before[end] & bit[source] else start  # type: ignore[index, assignment]
                inside = tuple(a for a in attentions if cores[a] & branch)
                within = tuple(s for s in scans or () if recurrences[s] & branch)
                if inside:
                    found.append(Residual("attention", node, source, inside, within))  # type: ignore[arg-type]
                elif within:
                    found.append(Residual("scan", node, source, (), within))  # type: ignore[arg-type]
                elif branch & linear:
                    found.append(Residual("mlp", node, source))  # type: ignore[arg-type]
                break
    return found
