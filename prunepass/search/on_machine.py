"""A plan made for a predicted latency, held against what its engine takes, and mended."""

from __future__ import annotations

from dataclasses import replace

from prunepass.search.knobs import Found, search_at
from prunepass.search.planning import Planning
from prunepass.search.refusals import misses, nothing_faster
from prunepass.search.trials import Trial

NEAR = 0.03
"""How far, relatively, a measured latency may lie from its limit before the plan is changed."""
MISSED = 0.05
"""How far above its limit the best plan may lie before it is refused."""
CHECKS = 5


def on_machine(planning: Planning, best: Trial, found: Found) -> Trial:
    """The plan whose engine, built and timed, is nearest to the limit; its cost is what was timed.

    Where an engine takes another time than was predicted, predictions are corrected by that much
    and the plan is made anew, up to `CHECKS` times.

    Raises:
        PlanError: No engine gains enough, or none meets the limit.
    """
    limit = planning.prices.limit
    assert limit is not None
    timed: list[Trial] = []
    trial: Trial | None = best
    while trial is not None and len(timed) < CHECKS:
        took = _timed(planning, trial, found)
        timed.append(replace(trial, cost=took))
        if abs(took / limit - 1) <= NEAR:
            break
        planning.correct(took / planning.trials.cost(trial.steps))
        trial = _again(planning, trial, limit)
        if trial is not None and any(trial.steps == other.steps for other in timed):
            break  # there is no plan between the two
    nearest = min(timed, key=lambda t: abs(t.cost / limit - 1))
    if not planning.pays(min(t.cost for t in timed)):
        raise nothing_faster(planning, nearest)
    if nearest.cost > limit * (1 + MISSED):
        raise misses(planning, min(timed, key=lambda t: t.cost))
    return nearest


def _timed(planning: Planning, trial: Trial, found: Found) -> float:
    """Milliseconds of a trial's engine."""
    prices = planning.prices
    assert prices.machine is not None
    predicted = planning.trials.cost(trial.steps)
    took = prices.took(prices.machine.timer(trial.steps))
    found.told.append(
        f"timed: {trial.recipe} at {trial.ratio:.3f} of the MACs takes {took:.2f} ms where "
        f"{predicted:.2f} ms were predicted (dense {prices.dense:.2f} ms)"
    )
    planning.say(found.told[-1])
    return took


def _again(planning: Planning, trial: Trial, limit: float) -> Trial | None:
    """The same recipe brought to the limit at corrected prices, or the best one if it cannot be."""
    same = planning.trials.run(trial.recipe, limit, guess=trial.ratio)
    return same or search_at(planning.trials, limit, guess=trial.ratio).best
