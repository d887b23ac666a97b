"""The plan of the fewest MACs that keeps a floor."""

from __future__ import annotations

from prunepass.planners.methods import DEFAULT
from prunepass.search.knobs import Found, search_at
from prunepass.search.planning import PAYS, Planning
from prunepass.search.recipe import Recipe
from prunepass.search.refusals import nothing_pays
from prunepass.search.trials import Trial

LOWEST = 0.2
"""Share of the MACs below which nothing is looked for at first."""
HALVINGS = 7
DOWN, BACK = 0.95, 1.04
"""Steps, relatively, from a plan that keeps the floor to a cheaper one, and back from one that
keeps it on the pictures that choose only."""


def cheapest(planning: Planning) -> Found:
    """As few MACs as the floor allows, on pictures that chose and on those that did not.

    Raises:
        PlanError: Nothing that keeps the floor pays.
    """
    first = _with_tokens_alone(planning)
    start = planning.prices.dense / PAYS
    if first is not None and planning.pays(first.cost):
        start = first.cost
    found = search_at(planning.trials, start, guess=start)
    if found.best is None or not planning.holds(found.best, part="chosen"):
        found.best = first
    if found.best is None or not planning.pays(found.best.cost):
        raise nothing_pays(planning, found.best)
    found.best = _further_down(planning, found.best)
    found.best = _back_until_it_holds(planning, found.best)
    return found


def _with_tokens_alone(planning: Planning) -> Trial | None:
    """The default method with the fewest MACs that keep the floor where plans are chosen."""
    low, high, best = LOWEST, 1.0, None
    for _ in range(HALVINGS):
        if best is not None and planning.trials.over:
            break
        middle = (low + high) / 2
        trial = planning.trials.run(Recipe(DEFAULT), middle, guess=middle)
        if trial is not None and planning.holds(trial, part="chosen"):
            best, high = trial, middle
        else:
            low = middle
    return best


def _further_down(planning: Planning, best: Trial) -> Trial:
    """Cheaper and cheaper as long as the floor holds where plans are chosen."""
    while not planning.trials.over:
        limit = DOWN * best.cost
        if best.recipe.method is None:
            trial = search_at(planning.trials, limit, guess=limit).best
        else:
            trial = planning.trials.run(best.recipe, limit, guess=limit)
        if trial is None or not planning.holds(trial, part="chosen"):
            break
        best = trial
    return best


def _back_until_it_holds(planning: Planning, best: Trial) -> Trial:
    """Dearer and dearer until the floor holds on pictures that chose nothing too."""
    while not planning.holds(best):
        limit = BACK * best.cost
        trial = planning.trials.run(best.recipe, limit, guess=limit)
        if trial is None or not planning.pays(trial.cost) or trial.cost <= best.cost:
            raise nothing_pays(planning, best)
        best = trial
    return best
