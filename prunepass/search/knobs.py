"""Turning the knobs of one plan at one cost: how tokens go, which layers go, both together.

Why no optimisation library does this: a trial is a draft run on some hundred pictures, seconds
each, so there are a few dozen of them, and the numbers they give are noisy. What is left to choose
is a name, one exponent and a short set of layers, ordered by what each costs alone. Searching
freely, one number a block, was tried: it finds what is better on the pictures that choose and worse
on others. A sampler would find that sooner. What helps is a test of each change on paired pictures,
which such libraries do not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from prunepass.planners.methods import DEFAULT
from prunepass.planners.schedule import default_exponent
from prunepass.search.recipe import SLACK, Recipe
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
        alone: (site, divergence, share of the cost saved) of each layer dropped alone, best first.
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
    if trials.over and found.tokens is not None:
        found.best = found.tokens
        found.told.append("time was up before layers were tried")
        return found
    found.alone = _each_alone(trials)
    found.layers = _layers(trials, limit, guess, found)
    single = [t for t in (found.tokens, found.layers) if t is not None]
    found.best = min(single, key=lambda t: t.verdict.mean, default=None)
    if found.best is None:
        found.best = _together(trials, limit, guess, found)
    elif found.best is found.tokens:
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
    """(site, divergence, share of the cost saved) of each layer dropped alone, the least loss for
    what it saves first; those that save nothing are left out."""
    dense = trials.cost(())
    free = trials.cost(trials.recipes.steps(Recipe(), 1.0))
    rows = []
    for site in trials.recipes.droppable():
        if trials.over:
            break
        trial = trials.at_ratio(Recipe(dropped=(site,)), 1.0, count=GLANCE)
        if trial is not None and trial.cost < free:
            rows.append((site, trial.verdict.mean, (free - trial.cost) / dense))
    return sorted(rows, key=lambda row: row[1] / row[2])


def _layers(trials: Trials, limit: float, guess: float, found: Found) -> Trial | None:
    """Layers alone, the least loss for what they save first, until the cost is met."""
    for dropped in _more_and_more(trials, found):
        steps = trials.recipes.steps(Recipe(dropped=dropped), 1.0)
        if trials.cost(steps) <= limit * (1 + SLACK):
            trial = trials.run(Recipe(dropped=dropped), limit, guess=guess)
            if trial is not None:
                loss = trial.verdict.mean
                found.told.append(f"layers alone: {trial.recipe}, KL {loss:.4f}")
            return trial
    found.told.append("layers alone do not reach this cost")
    return None


def _together(trials: Trials, limit: float, guess: float, found: Found) -> Trial | None:
    """Tokens and layers, where neither reaches the cost alone: as few layers as it takes."""
    for dropped in _more_and_more(trials, found):
        trial = trials.run(Recipe(DEFAULT, None, dropped), limit, guess=guess)
        if trial is not None:
            found.told.append(f"only both reach it: {trial.recipe}, KL {trial.verdict.mean:.4f}")
            return trial
    found.told.append("tokens and layers together do not reach this cost")
    return None


def _more_and_more(trials: Trials, found: Found) -> Iterator[tuple[str, ...]]:
    """Sets of layers, each with one more, the least loss for what they save first."""
    # Where time was up before all were tried, the last ones go first.
    known = [site for site, _, _ in found.alone]
    rest = [site for site in reversed(trials.recipes.droppable()) if site not in known]
    dropped: tuple[str, ...] = ()
    for site in [*known, *(rest if trials.over else [])]:
        more = trials.recipes.joined(dropped, site)
        if more is not None:
            dropped = more
            yield dropped


def _exchanged(trials: Trials, best: Trial, limit: float, guess: float, found: Found) -> Trial:
    """Layers dropped so that more tokens can stay, at the same cost, as long as that helps."""
    promising = [site for site, _, _ in found.alone[:EXCHANGES]]
    while promising and not trials.over:
        short = _glanced_at(trials, best, promising, limit, guess)
        for trial in short:
            gain, error = trial.verdict.gain_over(best.verdict)
            found.told.append(
                f"without {_gone(trial, best)[0]} at the same cost: KL {-gain:+.4f} +- {error:.4f}"
            )
        better = sorted((t for t in short if t.beats(best)), key=lambda t: t.verdict.mean)
        judged = (trials.judged(t.recipe, t.steps, t.cost) for t in better[:2])
        whole = next((trial for trial in judged if trial.beats(best)), None)
        if whole is None:
            found.told.append("dropping a further layer for tokens does not help")
            return best
        promising = [site for t in better[1:] for site in _gone(t, best)]
        found.told.append(f"exchanged: {whole.recipe}, KL {whole.verdict.mean:.4f}")
        best = _shaped(trials, whole, limit, guess, found)
    return best


def _glanced_at(
    trials: Trials, best: Trial, sites: list[str], limit: float, guess: float
) -> list[Trial]:
    """The best plan without one layer more, each in turn, at the same cost, on a few pictures."""
    found = []
    for site in sites:
        dropped = trials.recipes.joined(best.recipe.dropped, site)
        if dropped is None or trials.over:
            continue
        recipe = replace(best.recipe, dropped=dropped)
        trial = trials.run(recipe, limit, guess=guess, count=2 * GLANCE)
        if trial is not None:
            found.append(trial)
    return found


def _gone(trial: Trial, best: Trial) -> list[str]:
    """What one trial drops and another does not."""
    return [site for site in trial.recipe.dropped if site not in best.recipe.dropped]
