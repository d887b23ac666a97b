"""Trials of a search: recipes brought to one cost and judged, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from prunepass.errors import PrunepassError
from prunepass.plans import Plain, Step
from prunepass.search.judge import FIRST, Judge, Verdict
from prunepass.search.recipe import Cost, Recipe, Recipes, at_most


@dataclass(frozen=True)
class Trial:
    """One recipe at one cost.

    Attributes:
        recipe: What was done.
        steps: For how much.
        cost: In what the target counts.
        ratio: Share of the dense MACs.
        verdict: On the pictures that choose, all of them or the first.
    """

    recipe: Recipe
    steps: tuple[Step, ...]
    cost: float
    ratio: float
    verdict: Verdict

    def beats(self, other: Trial) -> bool:
        """Whether it diverges less than another by more than one standard error."""
        gain, error = self.verdict.gain_over(other.verdict)
        return gain > error


@dataclass
class Trials:
    """A search's trials so far.

    Attributes:
        recipes: Of the program.
        judge: Who runs drafts.
        cost: What steps cost.
        deadline: `time.monotonic()` after which nothing new is tried.
        progress: Told 1 for each trial.
        done: All trials on all pictures that choose.
        tried: How many trials there were, the short ones included.
    """

    recipes: Recipes
    judge: Judge
    cost: Cost
    deadline: float
    progress: Callable[[int], None] | None = None
    done: list[Trial] = field(default_factory=list)
    tried: int = 0

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return time.monotonic() > self.deadline

    def run(self, recipe: Recipe, limit: float, *, guess: float, count: int = 0) -> Trial | None:
        """A recipe brought to a cost and judged on `count` pictures (0: all); None if it cannot."""
        try:
            found = at_most(self.recipes, recipe, limit, self.cost, guess=guess)
            if found is None:
                return None
            steps, cost = found
            return self.judged(recipe, steps, cost, count=count)
        except PrunepassError:
            return None

    def at_ratio(self, recipe: Recipe, ratio: float, *, count: int = 0) -> Trial | None:
        """A recipe at a share of the dense MACs, whatever that costs; None if it cannot."""
        try:
            steps = self.recipes.steps(recipe, ratio)
            return self.judged(recipe, steps, self.cost(steps), count=count)
        except PrunepassError:
            return None

    def reprice(self, cost: Cost) -> None:
        """What steps cost from now on, and what those cost that were tried before."""
        self.cost = cost
        self.done = [replace(trial, cost=cost(trial.steps)) for trial in self.done]

    def judged(
        self, recipe: Recipe, steps: Sequence[Step], cost: float, *, count: int = 0
    ) -> Trial:
        """The trial of steps."""
        verdict = self.judge.verdict(steps, count=count)
        ratio = self.recipes.ratio(steps)
        trial = Trial(recipe, tuple(steps), cost, ratio, verdict)
        self.tried += 1
        if not count or count >= len(self.judge.images["chosen"]):
            self.done.append(trial)
        if self.progress is not None:
            self.progress(1)
        return trial

    def best_of(self, wanted: Sequence[Recipe], limit: float, *, guess: float) -> Trial | None:
        """The best of some recipes: all are judged on the first pictures, the best three on all."""
        short: list[Trial] = []
        for recipe in wanted:
            if short and self.over:
                break
            trial = self.run(recipe, limit, guess=guess, count=FIRST)
            if trial is not None:
                short.append(trial)
        short.sort(key=lambda t: t.verdict.mean)
        whole: list[Trial] = []
        for trial in short[:3]:
            if whole and self.over:
                break
            whole.append(self.judged(trial.recipe, trial.steps, trial.cost))
        return min(whole, key=lambda t: t.verdict.mean, default=None)

    def front(self) -> list[Trial]:
        """Trials that no other one is both cheaper and nearer to the dense model than."""
        order = sorted(self.done, key=lambda t: (t.cost, t.verdict.mean))
        found: list[Trial] = []
        for trial in order:
            if not found or trial.verdict.mean < found[-1].verdict.mean:
                found.append(trial)
        return found

    def front_notes(self) -> list[Plain]:
        """The front as plain data: cost, MACs, divergence, agreement, recipe."""
        return [
            [round(t.cost, 4), round(t.ratio, 4), round(t.verdict.mean, 5),
             round(t.verdict.quality("agreement"), 4), str(t.recipe)]
            for t in self.front()
        ]  # fmt: skip
