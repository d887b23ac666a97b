"""The address book of a program: labels in its graph, and sites as plain data."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Interpreter, Node

from prunepass.analyse.attention import FUSED, Attention, find_attentions
from prunepass.analyse.residual import Residual, find_residuals
from prunepass.analyse.scan import find_scans
from prunepass.analyse.token_positions import BATCH, Refusal
from prunepass.analyse.token_trace import TokenTrace, trace_tokens
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
        prefix, others = _steady_tokens(program, first)
        meta.add_label(first, f"{_PREFIX}{prefix}")
        for number in others:
            meta.add_label(first, f"{_FIXED}{number}")
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


def sites(program: ExportedProgram) -> Sites:
    """The sites of a labelled program, each with the reason why tokens cannot go, if so."""
    module = open_module(program)
    graph = module.graph
    prefix, fixed = prefix_tokens(graph), fixed_tokens(graph)
    table = labelled(graph)
    listed = _listed(graph, table)
    nodes = [table[f"{site.label}:output"] for site in listed]
    order = {node: i for i, node in enumerate(graph.nodes)}
    refusals = _refusals(module, nodes, order, prefix, fixed)
    found = tuple(
        replace(site, refusal=refusals[node]) for site, node in zip(listed, nodes, strict=True)
    )
    # Asked behind the last attention, where a step would use it: what follows has its own MLP.
    last = [n for s, n in zip(listed, nodes, strict=True) if s.kind.startswith("attention")]
    reads_prefix_only = bool(last) and _reads_prefix_only(module, last[-1], refusals, prefix)
    missing = None if found else _why_none(graph)
    digest = _fingerprint(program, listed, prefix)
    return Sites(found, prefix, digest, reads_prefix_only, missing, fixed)


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


def _first_stream(graph: Graph) -> Node | None:
    table = meta.labelled(graph)
    return table.get("block[0].attention:input", table.get("block[0].scan:input"))


class _UpTo(Interpreter):
    """Runs a graph as far as one node."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        super().__init__(module)
        self.goal = node
        self.result: Any = None

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name == self.goal.name:
            self.result = result
            raise StopIteration
        return result


def _steady_tokens(program: ExportedProgram, first: Node) -> tuple[int, tuple[int, ...]]:
    """Tokens that come out equal for two random inputs: how many lead, and which others."""
    module = open_module(program)
    node = _first_stream(module.graph)
    assert node is not None
    args, _ = program.example_inputs
    flat, _ = torch.utils._pytree.tree_flatten(args)
    rows = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        inputs = [
            torch.randn(a.shape, generator=generator).to(a)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in flat
        ]
        runner = _UpTo(module, node)
        try:
            with torch.no_grad():
                runner.run(*inputs)
        except StopIteration:
            pass
        rows.append(runner.result)
    if rows[0].dim() != 3:
        return 0, ()
    same = (rows[0] == rows[1]).all(dim=-1).all(dim=0)
    if bool(same.all()):
        return 0, ()
    prefix = int(same.long().cumprod(0).sum())
    others = same.nonzero().flatten().tolist()[prefix:]
    return prefix, tuple(others) if _first_is_scan(first) else ()


def _first_is_scan(first: Node) -> bool:
    """Whether the stream is scanned: elsewhere a token in the middle is a picture's like others."""
    return any(label.startswith("block[0].scan") for label in meta.labels(first))


def _refusals(
    module: GraphModule,
    nodes: list[Node],
    order: dict[Node, int],
    prefix: int,
    fixed: tuple[int, ...],
) -> dict[Node, str | None]:
    """For each site its refusal or None. A trace that succeeds holds for all later sites of the
    same token count; one that fails holds for all sites before the node that failed."""
    refusals: dict[Node, str | None] = {}
    good: TokenTrace | None = None
    bad: tuple[int, str] | None = None
    for node in nodes:
        if node in refusals:
            continue
        if bad is not None and order[node] < bad[0]:
            refusals[node] = bad[1]
            continue
        if good is not None and good.axes.get(node) == ((1, 0),):
            refusals[node] = None
            continue
        try:
            good = trace_tokens(module, node, prefix=prefix, fixed=fixed)
            refusals[node] = (
                "an output of the model carries the tokens" if good.reaches_output else None
            )
            if good.reaches_output:
                good, bad = None, (len(order), str(refusals[node]))
        except Refusal as refusal:
            reason = f"{refusal.what}: {refusal.found}"
            refusals[node] = reason
            bad = (order[refusal.node], reason)
    return refusals


def _reads_prefix_only(
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


def _why_none(graph: Graph) -> str:
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
