"""What one planning has at hand while it searches, and how it asks whether a floor holds."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.search.judge import Judge
from prunepass.search.latency import Say
from prunepass.search.prices import Prices
from prunepass.search.recipe import Recipes
from prunepass.search.target import Floor
from prunepass.search.trials import Trial, Trials

PAYS = 1.05
"""A plan is declined if less than this is gained."""


@dataclass
class Planning:
    """One planning.

    Attributes:
        recipes: Of the program.
        judge: Who runs drafts.
        trials: So far.
        prices: What the target counts in.
        floor: What must hold, None for nothing.
        say: Told what is going on.
    """

    recipes: Recipes
    judge: Judge
    trials: Trials
    prices: Prices
    floor: Floor | None
    say: Say

    def quality(self, trial: Trial, *, part: str = "unseen") -> float:
        """What the floor counts in, of a trial, on one part of the pictures."""
        kind = "kl" if self.floor is None else self.floor.kind
        return self.judge.verdict(trial.steps, part=part).quality(kind)

    def holds(self, trial: Trial, *, part: str = "unseen") -> bool:
        """Whether a trial keeps the floor on one part of the pictures."""
        return self.floor is None or self.floor.holds(self.quality(trial, part=part))

    def pays(self, cost: float) -> bool:
        """Whether a cost is enough below that of the dense model."""
        return cost * PAYS <= self.prices.dense

    def correct(self, factor: float) -> None:
        """Prices as an engine that was timed says, also of what was tried before."""
        self.prices = self.prices.corrected(self.recipes, factor)
        self.trials.reprice(self.prices.cost)
