"""Recognising the linear layers of a decoder's blocks and what each of them is for."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from prunepass.analyse.attention import find_attentions
from prunepass.analyse.sequence import between
from prunepass.graph import meta

LINEAR = torch.ops.aten.linear.default
ATTENTION = ("q", "k", "v", "o", "qkv")
MLP = ("gate", "up", "down", "gate_up")
_SIDES = {"q": "query", "k": "key", "v": "value"}


def label_projections(program: ExportedProgram) -> ExportedProgram:
    """The same program with labels on the linear layers of its blocks.

    Labels read `block[3].attention:k` and `block[3].mlp:gate`: queries, keys, values and the
    output of attention, q, k, v, o; gate, up and down of an MLP, where one without a gate has up
    and down; where a layer makes several of these at once, qkv and gate_up. A block may lack some.
    """
    graph = program.graph
    table = meta.labelled(graph)
    cores = {label: a for a in find_attentions(graph) for label in meta.labels(a.core)}
    for block in range(sum(label.endswith("].output:output") for label in table)):
        site = f"block[{block}].attention"
        attention = cores.get(f"{site}:core")
        start, end = table.get(f"{site}:input"), table.get(f"{site}:output")
        if attention is not None and start is not None and end is not None:
            _label_attention(graph, site, attention, start, end)
        site = f"block[{block}].mlp"
        start, end = table.get(f"{site}:input"), table.get(f"{site}:output")
        if start is not None and end is not None:
            _label_mlp(site, [n for n in _linears(graph, start, [end]) if not _is_labelled(n)])
    return program


def projections(graph: Graph) -> dict[str, Node]:
    """Site -> linear layer, in graph order: `block[3].attention.k` and the like."""
    found = {}
    for node in graph.nodes:
        for label in meta.labels(node):
            site, _, role = label.partition(":")
            if node.target is LINEAR and role in ATTENTION + MLP:
                found[f"{site}.{role}"] = node
    return found


def activated_gate(node: Node) -> Node | None:
    """The activated gate whose product with `up` a down projection reads, None without one."""
    product = node.args[0]
    if not isinstance(product, Node) or product.target is not torch.ops.aten.mul.Tensor:
        return None
    sides = [a for a in product.args if isinstance(a, Node)]
    active = [s for s in sides if not any(label.endswith(":up") for label in meta.labels(s))]
    return active[0] if len(sides) == 2 and len(active) == 1 else None


def role_of(site: str) -> str:
    """`k` of `block[3].attention.k`."""
    return site.rpartition(".")[2]


def block_of(site: str) -> int:
    """3 of `block[3].attention.k`."""
    return int(site[len("block[") : site.index("]")])


def _label_attention(graph: Graph, site: str, attention: Any, start: Node, end: Node) -> None:
    linears = _linears(graph, start, [end])
    feeds: dict[Node, list[str]] = {}
    for role, name in _SIDES.items():
        source = getattr(attention, name)
        for linear in linears if source is None else _linears(graph, start, [source]):
            feeds.setdefault(linear, []).append(role)
    for linear, roles in feeds.items():
        meta.add_label(linear, f"{site}:{roles[0] if len(roles) == 1 else 'qkv'}")
    after = [n for n in _linears(graph, attention.output, [end]) if n not in feeds]
    if len(after) == 1:
        meta.add_label(after[0], f"{site}:o")
    # Where attention and MLP stand side by side, both are added at once.
    beside = [n for n in linears if n not in feeds and n not in after]
    _label_mlp(site.replace("attention", "mlp"), beside)


def _label_mlp(site: str, linears: list[Node]) -> None:
    if not 2 <= len(linears) <= 3:
        return
    down = linears[-1]
    first = linears[:-1]
    if len(first) == 1:
        whole, half = meta.shape(first[0]), meta.shape(down.args[0])  # type: ignore[arg-type]
        fused = whole is not None and half is not None and whole[-1] == 2 * half[-1]
        meta.add_label(first[0], f"{site}:{'gate_up' if fused else 'up'}")
    else:
        gate = [n for n in first if _is_activated(n)]
        if len(gate) != 1:
            return
        for linear in first:
            meta.add_label(linear, f"{site}:{'gate' if linear is gate[0] else 'up'}")
    meta.add_label(down, f"{site}:down")


def _linears(graph: Graph, start: Node, ends: list[Node]) -> list[Node]:
    return [n for n in between(graph, start, ends) if n.target is LINEAR]


def _is_labelled(node: Node) -> bool:
    return any(label.partition(":")[2] in ATTENTION + MLP for label in meta.labels(node))


def _is_activated(node: Node) -> bool:
    """Whether a function that is not linear is the first to read what a layer gives."""
    product = {torch.ops.aten.mul.Tensor, torch.ops.aten.linear.default}
    return all(user.target not in product for user in node.users)
