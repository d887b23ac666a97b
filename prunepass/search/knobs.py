"""Turning the knobs of one plan at one cost: how tokens go, which layers go, both together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from prunepass.planners.schedule import default_exponent
from prunepass.search.recipe import Recipe
from prunepass.search.trials import Trial, Trials

METHODS = ("weighted-merge", "tome", "cls-attention")
"""Ways to reduce tokens that are tried: two of merging, one of dropping."""
EXPONENTS = (-0.25, 0.25, -0.5, 0.5)
"""Tried around the default exponent of the best method."""
GLANCE = 32
"""Pictures on which each layer is tried alone."""
EXCHANGES = 8
"""Layers that are tried in exchange for tokens, those first that promise most."""


@dataclass
class Found:
    """What was found at one cost.

    Attributes:
        best: Overall.
        tokens: With tokens alone.
        layers: With layers alone.
        alone: (site, divergence, share of the MACs) of each layer dropped alone, best first.
        told: What happened, as sentences.
    """

    best: Trial | None = None
    tokens: Trial | None = None
    layers: Trial | None = None
    alone: list[tuple[str, float, float]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def search_at(trials: Trials, limit: float, *, guess: float) -> Found:
    """The best plan at one cost: tokens first, then layers alone, then layers for tokens.

    An exchange is made only where the divergence falls by more than one standard error of the
    paired difference, first on a few pictures and then on all: with more freedom than pictures, a
    search fits noise.

    Args:
        trials: Of this search.
        limit: What the plan may cost.
        guess: The share of the MACs that is tried first.
    """
    found = Found()
    found.tokens = _tokens(trials, limit, guess, found)
    if trials.over:
        found.best = found.tokens
        found.told.append("time was up before layers were tried")
        return found
    found.alone = _each_alone(trials)
    found.layers = _layers(trials, limit, guess, found)
    single = [t for t in (found.tokens, found.layers) if t is not None]
    found.best = min(single, key=lambda t: t.verdict.mean, default=None)
    if found.best is not None and found.best is found.tokens:
        found.best = _exchanged(trials, found.best, limit, guess, found)
    return found


def _tokens(trials: Trials, limit: float, guess: float, found: Found) -> Trial | None:
    best = trials.best_of([Recipe(name) for name in METHODS], limit, guess=guess)
    if best is None:
        found.told.append("no reduction of tokens reaches this cost")
        return None
    found.told.append(f"tokens alone: {best.recipe}, KL {best.verdict.mean:.4f}")
    return _shaped(trials, best, limit, guess, found)


def _shaped(trials: Trials, best: Trial, limit: float, guess: float, found: Found) -> Trial:
    """The best trial with another exponent of its schedule, where that is better."""
    middle = best.recipe.exponent
    middle = default_exponent(min(1.0, guess)) if middle is None else middle
    wanted = [replace(best.recipe, exponent=middle + c) for c in EXPONENTS if middle + c >= 0]
    other = trials.best_of(wanted, limit, guess=guess) if not trials.over else None
    if other is None or not other.beats(best):
        found.told.append("no other schedule is better by more than the noise")
        return best
    found.told.append(f"better: {other.recipe}, KL {other.verdict.mean:.4f}")
    return other


def _each_alone(trials: Trials) -> list[tuple[str, float, float]]:
    """(site, divergence, MACs saved) of each layer dropped alone, the least loss a MAC first."""
    free = trials.recipes.ratio(trials.recipes.steps(Recipe(), 1.0))
    rows = []
    for site in trials.recipes.droppable():
        if trials.over:
            break
        trial = trials.run(Recipe(dropped=(site,)), float("inf"), guess=1.0, count=GLANCE)
        if trial is not None and trial.ratio < free:
            rows.append((site, trial.verdict.mean, free - trial.ratio))
    return sorted(rows, key=lambda row: row[1] / row[2])


def _layers(trials: Trials, limit: float, guess: float, found: Found) -> Trial | None:
    """Layers alone, the least loss a MAC first, until the cost is met."""
    dropped: tuple[str, ...] = ()
    for site, _, _ in found.alone:
        more = trials.recipes.joined(dropped, site)
        if more is None:
            continue
        dropped = more
        steps = trials.recipes.steps(Recipe(dropped=dropped), 1.0)
        if trials.cost(steps) <= limit * 1.005:
            trial = trials.run(Recipe(dropped=dropped), limit, guess=guess)
            if trial is not None:
                loss = trial.verdict.mean
                found.told.append(f"layers alone: {trial.recipe}, KL {loss:.4f}")
            return trial
    found.told.append("layers alone do not reach this cost")
    return None


def _exchanged(trials: Trials, best: Trial, limit: float, guess: float, found: Found) -> Trial:
    """Layers dropped so that more tokens can stay, at the same cost, as long as that helps."""
    promising = [site for site, _, _ in found.alone[:EXCHANGES]]
    while promising and not trials.over:
        short = []
        for site in promising:
            dropped = trials.recipes.joined(best.recipe.dropped, site)
            if dropped is None or trials.over:
                continue
            recipe = replace(best.recipe, dropped=dropped)
            trial = trials.run(recipe, limit, guess=guess, count=2 * GLANCE)
            if trial is not None:
                short.append(trial)
        better = sorted((t for t in short if t.beats(best)), key=lambda t: t.verdict.mean)
        for trial in short:
            gone = [s for s in trial.recipe.dropped if s not in best.recipe.dropped]
            gain, error = trial.verdict.gain_over(best.verdict)
            found.told.append(f"without {gone[0]} at the same cost: KL {-gain:+.4f} +- {error:.4f}")
        whole = None
        for trial in better[:2]:
            whole = trials.judged(trial.recipe, trial.steps, trial.cost)
            if whole.beats(best):
                break
            whole = None
        if whole is None:
            found.told.append("dropping a further layer for tokens does not help")
            return best
        best = whole
        found.told.append(f"exchanged: {best.recipe}, KL {best.verdict.mean:.4f}")
        promising = [
            s for t in better[1:] for s in t.recipe.dropped if s not in best.recipe.dropped
        ]
        best = _shaped(trials, best, limit, guess, found)
    return best
