"""Why there is no plan, and what can be had instead."""

from __future__ import annotations

from prunepass.errors import PlanError, PrunepassError
from prunepass.planners.methods import DEFAULT
from prunepass.search.planning import PAYS, Planning
from prunepass.search.recipe import Recipe
from prunepass.search.trials import Trial

LOW = (0.15, 0.25, 0.35, 0.5, 0.7)
"""Shares of the MACs that are tried to see how far down a recipe goes, the lowest first."""
HALVINGS = 5


def gains_too_little(planning: Planning) -> PlanError:
    """Of a target next to the dense model."""
    prices = planning.prices
    return PlanError(
        f"declined: {prices.goal} gains less than {PAYS} times",
        found=f"the dense model costs {prices.shown(prices.dense)}",
        fix="use it as it is, or a lower target",
    )


def out_of_reach(planning: Planning) -> PlanError:
    """Of a target below what any plan costs; says what the least is."""
    prices = planning.prices
    least = _least(planning)
    if not planning.pays(least):
        return PlanError(
            f"declined: nothing gains {PAYS} times here",
            found=f"{prices.shown(least)} is the least, the dense model has "
            f"{prices.shown(prices.dense)}",
            fix="use the dense model, or a target of another cost",
        )
    late = ", and time was up before all was tried" if planning.trials.over else ""
    return PlanError(
        f"{prices.goal} cannot be met",
        found=f"the least that was reached is {prices.shown(least)}{late}",
        fix=f"--target '{prices.asking(1.02 * least)}', or a smaller model",
    )


def nothing_faster(planning: Planning, best: Trial) -> PlanError:
    """Where engines that were timed gain too little."""
    prices = planning.prices
    return PlanError(
        f"declined: nothing gains {PAYS} times here",
        found=f"{best.recipe} takes {best.cost:.2f} ms, the dense model {prices.dense:.2f} ms",
        fix="use the dense model, or a larger batch",
    )


def misses(planning: Planning, best: Trial) -> PlanError:
    """Where engines that were timed come near a target, but do not meet it."""
    prices = planning.prices
    return PlanError(
        f"{prices.goal} cannot be met",
        found=f"the fastest engine that was built and timed takes {best.cost:.2f} ms "
        f"({best.recipe})",
        fix=f"--target '{prices.asking(1.02 * best.cost)}'",
    )


def too_lossy(planning: Planning, best: Trial) -> PlanError:
    """Where the floor does not hold at the target; says where it does."""
    prices = planning.prices
    reached = _cheapest_that_holds(planning, best)
    so, fix = "", "a lower floor"
    if reached is not None:
        so = f"; {planning.floor} holds down to {prices.shown(reached.cost)}"
        fix = f"--target '{prices.asking(1.01 * reached.cost)}', or a lower floor"
    kind = "kl" if planning.floor is None else planning.floor.kind
    return PlanError(
        f"{prices.goal} and {planning.floor} cannot both be met",
        found=f"at {prices.shown(best.cost)} the best plan has {kind} "
        f"{planning.quality(best):.4g} ({best.recipe}){so}",
        fix=fix,
    )


def nothing_pays(planning: Planning, best: Trial | None) -> PlanError:
    """Where a floor holds at next to no gain only."""
    gain = 1.0 if best is None else planning.prices.dense / best.cost
    return PlanError(
        f"declined: nothing gains {PAYS} times and holds {planning.floor}",
        found=f"{gain:.2f} times is the most that was tried",
        fix="use the dense model, or a lower floor",
    )


def _cheapest_that_holds(planning: Planning, best: Trial) -> Trial | None:
    """The best plan's way of reducing tokens with more of them left, where that keeps the floor."""
    recipe = Recipe(best.recipe.method or DEFAULT, best.recipe.exponent)
    low, high, reached = best.ratio, 1.0, None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        trial = planning.trials.at_ratio(recipe, middle)
        if trial is not None and planning.holds(trial):
            reached, high = trial, middle
        else:
            low = middle
    return reached if reached is not None and planning.pays(reached.cost) else None


def _least(planning: Planning) -> float:
    """The lowest cost that any recipe was brought to, whatever it loses."""
    recipes, costs = planning.recipes, [planning.prices.dense]
    everything: tuple[str, ...] = ()
    for site in recipes.droppable():
        everything = recipes.joined(everything, site) or everything
    for recipe in (
        Recipe(DEFAULT), Recipe(dropped=everything), Recipe(DEFAULT, None, everything)
    ):  # fmt: skip
        for ratio in LOW:
            try:
                costs.append(planning.trials.cost(recipes.steps(recipe, ratio)))
                break
            except PrunepassError:
                continue
    return min(costs)
