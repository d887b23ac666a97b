"""Sharing out among the layers of one block what the block keeps, by what its output loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from prunepass.analyse.projections import projections
from prunepass.errors import UsageError
from prunepass.graph import meta
from prunepass.planners.block_runs import BlockRuns, Layer

STEP = 0.025
"""Share of the inputs of a layer as large as the stream is wide that one step takes away."""
LAST = 0.25
"""Share of the positions of a text, the last ones, on which an output is compared."""


def allocate_greedily(
    runs: BlockRuns, block: int, layers: Sequence[Layer], *, keep: float, step: float = STEP
) -> dict[str, float]:
    """Site -> share of its inputs, of the layers of one block: see `giving_way`.

    Args:
        runs: From `record_blocks`.
        block: Its number.
        layers: The layers that share.
        keep: What is to stay in the mean, weighed by the sizes of the layers, in (0, 1].
        step: See `STEP`.

    Raises:
        UsageError: `step` is no share.
    """
    if not (isinstance(step, (int, float)) and 0.0 < step <= 1.0):
        raise UsageError(
            "layers share out in steps of a share of their inputs, in (0, 1]",
            found=f"step={step!r}",
            fix=f"step={STEP}",
        )
    sizes = {layer.site: layer.numbers for layer in layers}
    whole = sum(sizes.values())
    shares: dict[str, float] = {}
    for shares in giving_way(runs, block, layers, step=step):
        if sum(sizes[site] * share for site, share in shares.items()) / whole <= keep + 1e-9:
            break
    return shares


def giving_way(
    runs: BlockRuns, block: int, layers: Sequence[Layer], *, step: float = STEP
) -> Iterator[dict[str, float]]:
    """Shares of the inputs of the layers of one block, from everything to almost nothing.

    Each time the layer whose next step changes the block's output least gives way. A larger layer
    takes smaller steps, so that all steps save the same.

    Source: WINA, arXiv 2505.19427, and TEAL, arXiv 2408.14690: greedy allocation. Calibrated with
    the masks that are run (top-k), where the published code calibrates with thresholds.
    """
    nodes = projections(runs.module.graph)
    rules = {layer.site: layer.rule for layer in layers}
    width = (meta.shape(runs.blocks[block][-1]) or (0,))[-1]
    steps = {layer.site: min(1.0, step * int(width) ** 2 / layer.numbers) for layer in layers}
    least = {layer.site: 1.0 / layer.inputs for layer in layers}
    shares = {layer.site: 1.0 for layer in layers}
    dense = [runs.output(block, i, {}) for i in range(len(runs.values))]

    def error(trial: Mapping[str, float]) -> float:
        given = {nodes[s]: (rules[s], k) for s, k in trial.items() if k < 1.0}
        outputs = (runs.output(block, i, given) for i in range(len(dense)))
        return sum(changed(a, b) for a, b in zip(outputs, dense, strict=True))

    while True:
        yield shares
        trials = {
            s: shares | {s: max(least[s], k - steps[s])} for s, k in shares.items() if k > least[s]
        }
        if not trials:
            return
        shares = trials[min(trials, key=lambda s: error(trials[s]))]


def changed(output: Tensor, dense: Tensor) -> float:
    """How far a block's output [B, T, C] is from the dense one, on the last quarter of positions.

    The 2-norm over positions of each channel, its mean over channels, the sum over texts.
    """
    first = int(output.shape[1] * (1.0 - LAST))
    difference = (output - dense)[:, first:].double()
    return float(difference.norm(dim=1).mean(dim=1).sum())
