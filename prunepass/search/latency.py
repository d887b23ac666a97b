"""Latency of plans without building them: a table of parts, fitted to engines that were timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from prunepass.errors import PrunepassError
from prunepass.planners.methods import DEFAULT
from prunepass.plans import Step
from prunepass.rules.table import UNREAD
from prunepass.search.engines import Timer
from prunepass.search.recipe import Recipe, Recipes

RATIOS = (0.75, 0.5, 0.35)
"""Shares of the MACs at which a reduction of tokens is timed."""
PARTS = 4
Say = Callable[[str], None]


@dataclass(frozen=True)
class LatencyTable:
    """What a run takes, as a share of what the dense engine takes, as a sum of parts.

    Attributes:
        parts: Shares of: a run itself; all MACs of the dense model; scoring all its tokens once in
            every block; all its blocks.
        scale: What engines timed later were found to take over what the parts say.
    """

    parts: tuple[float, ...]
    scale: float = 1.0

    def share(self, recipes: Recipes, steps: Sequence[Step]) -> float:
        """Predicted time of a batch over that of the dense engine."""
        if not steps:
            return 1.0
        amounts = features(recipes, steps)
        found = sum(part * x for part, x in zip(self.parts, amounts, strict=True))
        return max(1e-6, found * self.scale)

    def corrected(self, factor: float) -> LatencyTable:
        """The table where engines turned out to take `factor` times what it says."""
        return replace(self, scale=self.scale * factor)


def features(recipes: Recipes, steps: Sequence[Step]) -> tuple[float, ...]:
    """What latency is made of: 1, share of the MACs, share of tokens that reductions score, share
    of the branches that stay."""
    whole = next((s.tokens for s in recipes.sites if s.tokens), 1)
    left, scored = whole, 0
    for step in steps:
        if step.kind == "reduce_tokens" and step.rule != UNREAD:
            scored += left
            left = step.count(left, recipes.sites.always_kept)
    branches = {b.site: len(b.branches) for b in recipes.blocks}
    gone = sum(branches.get(s.site, 1) for s in steps if s.kind == "drop_layers")
    return (
        1.0,
        recipes.ratio(steps),
        scored / whole / max(1, len(recipes.blocks)),
        1 - gone / max(1, sum(branches.values())),
    )


def measured_table(recipes: Recipes, timer: Timer, *, say: Say) -> LatencyTable:
    """The table of a program on one machine: a handful of engines, a minute or so.

    Args:
        recipes: Of the program.
        timer: Builds and times engines.
        say: Told what is going on.

    Raises:
        BackendError: The backend fails.
    """
    rows: list[tuple[float, ...]] = [(1.0, 1.0, 0.0, 1.0)]
    shares = [1.0]
    for recipe, ratio in _probes(recipes):
        try:
            steps = recipes.steps(recipe, ratio)
        except PrunepassError:
            continue  # this model has no such plan
        say(f"timing {recipe} at {recipes.ratio(steps):.2f} of the MACs")
        rows.append(features(recipes, steps))
        shares.append(timer(steps).ratio)
    return LatencyTable(fitted(rows, shares))


def _probes(recipes: Recipes) -> list[tuple[Recipe, float]]:
    """What is timed: less and less of the tokens, a block or two dropped."""
    inner = [site for site in recipes.droppable() if "." not in site]
    middle = tuple(inner[len(inner) // 2 :][:2])
    drops = [(Recipe(dropped=middle), 1.0)] if middle else []
    return [*((Recipe(DEFAULT), ratio) for ratio in RATIOS), *drops]


def fitted(rows: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    """Least squares with no part below zero: parts that come out so are left out in turn.

    Four numbers and a handful of rows: scipy's `nnls` says the same and would be one more package.
    """
    a = torch.tensor(rows, dtype=torch.float64)
    b = torch.tensor(values, dtype=torch.float64)
    used = list(range(a.shape[1]))
    while True:
        part = a[:, used]
        penalty = 1e-6 * torch.eye(len(used), dtype=torch.float64)
        x = torch.linalg.solve(part.T @ part + penalty, part.T @ b)
        if bool((x >= 0).all()) or len(used) == 1:
            break
        del used[int(x.argmin())]
    found = [0.0] * a.shape[1]
    for i, value in zip(used, x.tolist(), strict=True):
        found[i] = max(0.0, value)
    return tuple(found)
