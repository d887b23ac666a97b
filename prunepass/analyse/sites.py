"""The address book of a program: labels in its graph, and sites as plain data."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from prunepass.analyse.attention import FUSED, Attention, find_attentions
from prunepass.analyse.refusals import reads_prefix_only, refusals_of, why_none
from prunepass.analyse.residual import Residual, find_residuals
from prunepass.analyse.scan import find_scans
from prunepass.analyse.steady_tokens import steady_tokens
from prunepass.analyse.token_positions import BATCH
from prunepass.errors import PlanError
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.records import Site, Sites

_PREFIX = "prefix_tokens="
_FIXED = "fixed_token="


def label_sites(program: ExportedProgram) -> ExportedProgram:
    """The same program with labels on the nodes of its blocks.

    Labels read `block[3].attention:output`: site, then role. They are what plans speak of, since
    node names change with every rewrite. A program that is labelled already is returned as it is.
    """
    graph = program.graph
    if any(meta.labels(node) for node in graph.nodes):
        return program
    residuals = find_residuals(graph, find_attentions(graph), find_scans(graph))
    _label_blocks(graph, residuals)
    first = _first_stream(graph)
    if first is not None:
        prefix, others = steady_tokens(program, first)
        stream = meta.labelled(graph)[first]
        meta.add_label(stream, f"{_PREFIX}{prefix}")
        for number in others:
            meta.add_label(stream, f"{_FIXED}{number}")
    return program


def prefix_tokens(graph: Graph) -> int:
    """Leading tokens that do not depend on the picture, as `label_sites` wrote them down."""
    for node in graph.nodes:
        for label in meta.labels(node):
            if label.startswith(_PREFIX):
                return int(label.removeprefix(_PREFIX))
    return 0


def fixed_tokens(graph: Graph) -> tuple[int, ...]:
    """Numbers of the tokens behind the prefix that do not depend on the picture either."""
    found = (label for node in graph.nodes for label in meta.labels(node))
    return tuple(int(n.removeprefix(_FIXED)) for n in found if n.startswith(_FIXED))


def sites(program: ExportedProgram, *, restore: str | None = None) -> Sites:
    """The sites of a labelled program, each with the reason why tokens cannot go, if so.

    Args:
        program: From `capture`.
        restore: Site behind which all tokens are to be back, for outputs that carry all of them.

    Raises:
        PlanError: There is no site called `restore`.
    """
    module = open_module(program)
    graph = module.graph
    prefix, fixed = prefix_tokens(graph), fixed_tokens(graph)
    table = labelled(graph)
    listed = _listed(graph, table)
    nodes = [table[f"{site.label}:output"] for site in listed]
    order = {node: i for i, node in enumerate(graph.nodes)}
    until = None if restore is None else restored(table, restore)
    refusals = refusals_of(module, nodes, order, prefix, fixed, until)
    found = tuple(
        replace(site, refusal=refusals[node]) for site, node in zip(listed, nodes, strict=True)
    )
    # Asked behind the last attention, where a step would use it: what follows has its own MLP.
    last = [n for s, n in zip(listed, nodes, strict=True) if s.kind.startswith("attention")]
    prefix_is_all = (
        until is None and bool(last) and reads_prefix_only(module, last[-1], refusals, prefix)
    )
    missing = None if found else why_none(graph)
    digest = _fingerprint(program, listed, prefix)
    return Sites(found, prefix, digest, prefix_is_all, missing, fixed)


def fingerprint(program: ExportedProgram) -> str:
    """What tells the program of one architecture from another: 16 hexadecimal digits.

    Over its sites, their sizes, and the names and shapes of its weights, not their values.
    """
    graph = program.graph
    return _fingerprint(program, _listed(graph, labelled(graph)), prefix_tokens(graph))


def _listed(graph: Graph, table: dict[str, Node]) -> list[Site]:
    """The sites of a graph in its order, not yet asked whether tokens can go."""
    outputs = [label for label in table if label.endswith(":output")]
    order = {node: i for i, node in enumerate(graph.nodes)}
    outputs.sort(
        key=lambda label: (order[table[label]], label.startswith("block") and ".output" in label)
    )
    found = []
    for label in outputs:
        site, node = label.removesuffix(":output"), table[label]
        tokens, channels = _stream_size(node)
        block, kind = _parse(site)
        found.append(
            Site(
                label=site,
                kind=kind,
                block=block,
                module=meta.module_path(node),
                tokens=tokens,
                channels=channels,
                heads=_heads(table, block),
                roles=roles(table, block, tokens),
                refusal=None,
            )
        )
    return found


def labelled(graph: Graph) -> dict[str, Node]:
    """Label -> node, over a whole graph, with what each attention reads found again.

    Queries, keys and values are often items of a tuple, whose labels a re-export loses.
    """
    table = meta.labelled(graph)
    for attention in find_attentions(graph):
        for label in meta.labels(attention.core):
            site, _, role = label.partition(":")
            if role in ("core", "written_out"):
                for name in ("core", "query", "key", "value", "probabilities"):
                    node = getattr(attention, name)
                    if node is not None:
                        table.setdefault(f"{site}:{name}", node)
    return table


def roles(table: dict[str, Node], block: int, tokens: int) -> tuple[str, ...]:
    """Names of the tensors a rule can ask for at the sites of a block."""
    names = ["hidden", "size"]
    for role in ("query", "key", "value"):
        node = table.get(f"block[{block}].attention:{role}")
        shape = meta.concrete_shape(node, BATCH) if node is not None else None
        if shape is not None and len(shape) == 4 and shape[2] == tokens:
            names.append(role)
    core = table.get(f"block[{block}].attention:core")
    if core is not None:
        probabilities = table.get(f"block[{block}].attention:probabilities")
        shape = meta.concrete_shape(probabilities, BATCH) if probabilities is not None else None
        if shape is not None:
            if shape[-2:] == (tokens, tokens):
                names.append("attention")
        elif "query" in names and "key" in names:
            names.append("attention")
    mixed = table.get(f"block[{block}].scan:mixed")
    shape = meta.concrete_shape(mixed, BATCH) if mixed is not None else None
    if shape is not None and len(shape) == 3 and shape[1] == tokens:
        names.append("scan_output")
    return tuple(sorted(names))


def restored(table: dict[str, Node], site: str) -> Node:
    """The node behind which tokens are back.

    Raises:
        PlanError: There is no such site.
    """
    node = table.get(f"{site}:output")
    if node is None:
        raise PlanError(
            f"tokens cannot come back at {site!r}", found="no such site",
            fix="restore='block[i].output', the last block",
        )  # fmt: skip
    return node


def narrowed_attention(table: dict[str, Node], site: str) -> Node | None:
    """The fused attention of a site, whose queries can be cut to the prefix tokens.

    None where the attention is written out; then its result is cut.
    """
    core = table.get(f"{site}:core")
    return core if core is not None and core.target is FUSED else None


def _label_blocks(graph: Graph, residuals: list[Residual]) -> None:
    block, last, mlps = -1, None, 0
    for residual in residuals:
        # A pooling head may add an MLP to what it pooled: that belongs to no block.
        if last is not None and residual.kind == "mlp" and _tokens(residual.node) != _tokens(last):
            continue
        if residual.kind in ("attention", "scan"):
            if last is not None and block >= 0:
                meta.add_label(last, f"block[{block}].output:output")
            block, mlps = block + 1, 0
            site = f"block[{block}].{residual.kind}"
            if residual.kind == "attention":
                _label_attention(site, residual.attentions[0])
            else:
                _label_scans(site, residual)
        elif block < 0:
            continue
        else:
            site = f"block[{block}].mlp" + (f"[{mlps}]" if mlps else "")
            mlps += 1
        meta.add_label(residual.source, f"{site}:input")
        meta.add_label(residual.node, f"{site}:output")
        last = residual.node
    if last is not None and block >= 0:
        meta.add_label(last, f"block[{block}].output:output")


def _tokens(node: Node) -> int:
    return _stream_size(node)[0]


def _stream_size(node: Node) -> tuple[int, int]:
    """(tokens, channels) of a stream [B, T, C], [B, H, W, C] or [B, C, H, W].

    A grid is taken for the second kind where its last two axes are equal and the first two are
    not. That is a guess, for show: nothing relies on it, since grids are refused.
    """
    shape = meta.concrete_shape(node, BATCH) or (0, 0, 0)
    if len(shape) == 3:
        return shape[1], shape[2]
    _, first, second, third = shape
    if second == third != first:
        return second * third, first
    return first * second, third


def _label_attention(site: str, attention: Attention) -> None:
    for role in ("core", "query", "key", "value", "probabilities"):
        node = getattr(attention, role)
        if node is not None:
            meta.add_label(node, f"{site}:{role}")


def _label_scans(site: str, residual: Residual) -> None:
    for scan in residual.scans:
        meta.add_label(scan.core, f"{site}:core")
    branch = next((n for n in residual.node.all_input_nodes if n is not residual.source), None)
    while isinstance(branch, Node) and branch.target is not torch.ops.aten.linear.default:
        branch = branch.args[0] if len(branch.all_input_nodes) == 1 else None  # type: ignore[assignment]
    if isinstance(branch, Node) and isinstance(branch.args[0], Node):
        meta.add_label(branch.args[0], f"{site}:mixed")


def _first_stream(graph: Graph) -> str | None:
    """Label of the node where tokens first are a stream."""
    table = meta.labelled(graph)
    labels = ("block[0].attention:input", "block[0].scan:input")
    return next((label for label in labels if label in table), None)


def _parse(site: str) -> tuple[int, str]:
    block = int(site[len("block[") : site.index("]")])
    return block, site.split(".", 1)[1].split("[")[0]


def _heads(table: dict[str, Node], block: int) -> int | None:
    for role in ("key", "query", "probabilities"):
        node = table.get(f"block[{block}].attention:{role}")
        shape = meta.concrete_shape(node, BATCH) if node is not None else None
        if shape is not None and len(shape) == 4:
            return shape[1]
    return None


def _fingerprint(program: ExportedProgram, found: list[Site], prefix: int) -> str:
    text = [f"prefix={prefix}"]
    text += [f"{s.label} {s.kind} {s.tokens} {s.channels} {s.heads}" for s in found]
    text += [f"{name} {tuple(p.shape)}" for name, p in sorted(program.state_dict.items())]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]
