"""Layer dropping: a block, or its attention or MLP, replaced by its residual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.blocks import Block, Branch, find_blocks
from prunepass.errors import PlanError, UnsupportedGraph, nearest
from prunepass.graph import meta
from prunepass.graph.edit import open_module, seal
from prunepass.graph.simplify import drop_unread
from prunepass.plans import RESIDUAL, Step
from prunepass.records import PassRecord

Part = Block | Branch


def drop_layers(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """The program without some layers, and a record of what went.

    Sites are `block[3]`, `block[3].attention` or `block[3].mlp`. Labels of what stays are as they
    were. Weights that only dropped layers read are gone, and so are outputs that were computed
    inside them, such as their keys and values.

    Raises:
        PlanError: A step names an unknown site, something is dropped twice, or nothing would be
            left.
        UnsupportedGraph: More than its branches and norms lies inside a block.
    """
    module = open_module(program)
    record = edit(module, steps)
    return seal(module, program), record


def edit(module: GraphModule, steps: Sequence[Step]) -> PassRecord:
    """As `drop_layers`, in place, on an opened program."""
    graph = module.graph
    blocks = find_blocks(graph)
    parts = _bound(blocks, steps)
    branches = [b for part in parts for b in _branches(part)]
    _check_left(blocks, branches)
    read = _read(module)
    _drop_outputs(module, branches)
    gone = {branch.site for branch in branches}
    whole = [block for block in blocks if all(b.site in gone for b in block.branches)]
    lost = gone | {f"{block.site}.output" for block in whole}
    ends = {branch.node: branch.source for branch in branches}
    ends |= {part.end: part.source for part in parts if isinstance(part, Block)}
    order = {node: i for i, node in enumerate(graph.nodes)}
    # From the last to the first, so that what stands for a node is still there.
    for node in sorted(ends, key=lambda n: -order[n]):
        _bypass(node, ends[node], lost)
    drop_unread(graph)
    _forget(module, read - _read(module))
    graph.lint()
    module.recompile()
    return PassRecord(
        kind="drop_layers",
        applied=tuple(part.site for part in parts),
        details={"branches": len(branches), "blocks": len(whole)},
    )


def _bound(blocks: Sequence[Block], steps: Sequence[Step]) -> list[Part]:
    """The blocks and branches that steps name, in the order they run."""
    known: dict[str, Part] = {}
    for block in blocks:
        known[block.site] = block
        known.update({branch.site: branch for branch in block.branches})
    if not steps:
        raise PlanError("no layer to drop", found="0 steps", fix="plan at least one step")
    named: dict[str, Part] = {}
    for step in steps:
        if step.site not in known:
            raise PlanError(
                f"there is no layer {step.site!r}",
                found=f"{len(blocks)} blocks",
                fix=f"one of {', '.join(nearest(step.site, known).split(', ')[:5])}",
            )
        if step.rule != RESIDUAL or step.options:
            raise PlanError(
                f"the step at {step.site} asks for more than dropping a layer",
                found=f"rule {step.rule!r}, options {dict(step.options)}",
                fix=f"rule {RESIDUAL!r} without options",
            )
        part = known[step.site]
        twice = [
            b.site for b in _branches(part) for other in named.values() if b in _branches(other)
        ]
        if twice:
            raise PlanError(
                "a layer is dropped twice", found=twice[0], fix="name a block or its branches"
            )
        if isinstance(part, Block) and part.obstacle is not None:
            raise UnsupportedGraph(
                f"cannot drop {part.site} ({meta.module_path(part.end)})",
                found=part.obstacle,
                fix="drop its branches: " + ", ".join(b.site for b in part.branches),
            )
        named[step.site] = part
    return [part for site, part in known.items() if site in named]


def _branches(part: Part) -> tuple[Branch, ...]:
    return part.branches if isinstance(part, Block) else (part,)


def _check_left(blocks: Sequence[Block], gone: Sequence[Branch]) -> None:
    attentions = [b.site for block in blocks for b in block.branches if b.kind == "attention"]
    if not {*attentions} - {branch.site for branch in gone}:
        raise PlanError(
            "no attention would be left",
            found=f"all {len(attentions)} of them are dropped",
            fix="leave at least one block",
        )


def _bypass(node: Node, source: Node, lost: Iterable[str]) -> None:
    """Lets `source` stand for `node`; labels move to it, but for those of sites that are lost."""
    for label in meta.labels(node):
        if label.partition(":")[0] not in lost:
            meta.add_label(source, label)
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _drop_outputs(module: GraphModule, branches: Sequence[Branch]) -> None:
    """Takes outputs away that are computed inside dropped branches."""
    graph = module.graph
    output = next(n for n in graph.nodes if n.op == "output")
    flat, _ = torch.utils._pytree.tree_flatten(output.args[0])
    inside = {node for branch in branches for node in branch.inside}
    left = tuple(node for node in flat if node not in inside)
    if len(left) < len(flat):
        graph.set_codegen(torch.fx.graph.CodeGen())
        output.args = (left,)


def _read(module: GraphModule) -> set[str]:
    """Names of the weights and constants that the graph reads."""
    return {str(node.target) for node in module.graph.find_nodes(op="get_attr")}


def _forget(module: GraphModule, names: Iterable[str]) -> None:
    """Deletes weights that are no longer read."""
    for name in names:
        *path, last = name.split(".")
        owner: torch.nn.Module = module
        for part in path:
            owner = getattr(owner, part)
        delattr(owner, last)
