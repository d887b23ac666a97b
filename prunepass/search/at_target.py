"""The plan that meets a target with the least loss."""

from __future__ import annotations

from prunepass.search.knobs import Found, search_at
from prunepass.search.on_machine import on_machine
from prunepass.search.planning import Planning
from prunepass.search.refusals import gains_too_little, out_of_reach, too_lossy


def at_target(planning: Planning) -> Found:
    """The best plan of a cost, its engine timed where that counts.

    Raises:
        PlanError: The target gains too little, cannot be met, or breaks the floor.
    """
    prices = planning.prices
    limit = prices.limit
    assert limit is not None
    if not planning.pays(limit):
        raise gains_too_little(planning)
    found = search_at(planning.trials, limit, guess=min(1.0, limit / prices.dense))
    if found.best is None:
        raise out_of_reach(planning)
    if prices.machine is not None:
        found.best = on_machine(planning, found.best, found)
    if not planning.holds(found.best):
        raise too_lossy(planning, found.best)
    return found
