"""Zeros in weights: shares by ECoFLaP, chosen by Wanda. A saving in theory, not in time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.blocks import Block
from prunepass.calibrate import Batch, Watch, run
from prunepass.errors import PlanError
from prunepass.importance.subject import subject
from prunepass.planners.proportional_allocation import allocate_by_score
from prunepass.rules.wanda import wanda_kept

MORE = 0.1
"""By how much the sparsity of a block may lie above that of all."""


@dataclass(frozen=True)
class Sparsified:
    """What became zero.

    Attributes:
        weights: Weights of the matrices in all blocks.
        zeros: How many of them are zero.
        by_block: Site -> share of zeros.
    """

    weights: int
    zeros: int
    by_block: Mapping[str, float]

    def __str__(self) -> str:
        return (
            f"{self.zeros / self.weights:.1%} of {self.weights / 1e6:.2f} M weights are zero. "
            "The saving is theoretical: no backend here skips zeros that stand anywhere, so the "
            "engine is as large and as fast as before."
        )


def sparsify_weights(
    program: ExportedProgram,
    batches: Sequence[Batch],
    *,
    sparsity: float,
    scores: Mapping[str, float] | None = None,
    most: float | None = None,
) -> tuple[ExportedProgram, Sparsified]:
    """The program with zeros in the matrices of its blocks; the program given stays as it is.

    Args:
        program: A labelled program.
        batches: Calibration data, read once a block.
        sparsity: Share of all these weights that becomes zero, in [0, 1).
        scores: Site of a block -> importance, such as `layer_scores(...).values["ecoflap"]`; None
            gives every block the same share.
        most: Largest share of zeros in a block, None for `sparsity` + 0.1.

    Raises:
        PlanError: A share is out of range, a block has no score, or there is no data.

    Source: ECoFLaP (ICLR 2024), both stages; Wanda (ICLR 2024) chooses, block by block, on what
    the blocks in front of it give with their zeros in.
    """
    if not batches:
        raise PlanError("Wanda needs calibration data", found="no batch", fix="give some batches")
    made = copy.deepcopy(program)
    opened = subject(made)
    sizes = [sum(opened.weights[name].numel() for name in b.weights) for b in opened.blocks]
    lacking = [b.site for b in opened.blocks if scores is not None and b.site not in scores]
    if lacking:
        raise PlanError(
            f"{lacking[0]} has no score",
            found=str(sorted(scores or {}))[:100],
            fix="a score for each layer",
        )
    given = [1.0 if scores is None else float(scores[b.site]) for b in opened.blocks]
    given = given if scores is not None else [float(size) for size in sizes]
    limit = min(1.0, sparsity + MORE) if most is None else most
    kept = allocate_by_score(given, sizes, sparsity=sparsity, most=limit)
    by_block, zeros = {}, 0
    for block, keep, size in zip(opened.blocks, kept, sizes, strict=True):
        gone = _prune(opened.module, opened.weights, block, batches, 1 - keep / size)
        by_block[block.site], zeros = gone / size, zeros + gone
    return made, Sparsified(sum(sizes), zeros, by_block)


@torch.no_grad()
def _prune(
    module: GraphModule,
    weights: Mapping[str, Tensor],
    block: Block,
    batches: Sequence[Batch],
    sparsity: float,
) -> int:
    """How many weights of a block became zero."""
    inputs = {
        str(node.args[1].target): node.args[0]
        for branch in block.branches
        for node in branch.inside
        if node.target is torch.ops.aten.linear.default
        and isinstance(node.args[1], Node)
        and node.args[1].target in branch.weights
    }
    squares: dict[Node, Tensor] = {}

    def look(node: Node, value: Tensor) -> None:
        more = value.double().pow(2).reshape(-1, value.shape[-1]).sum(0)
        squares[node] = squares[node] + more if node in squares else more

    watches: dict[Node, Watch] = {
        node: partial(look, node) for node in inputs.values() if isinstance(node, Node)
    }
    for batch in batches:
        run(module, batch, watches)
    examples, gone = sum(len(batch) for batch in batches), 0
    for name, node in inputs.items():
        if not isinstance(node, Node):
            continue
        stays = wanda_kept(weights[name], squares[node] / examples, sparsity=sparsity)
        weights[name].mul_(stays)
        gone += int((~stays).sum())
    return gone
