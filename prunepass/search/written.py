"""A plan with all that a search has to say about it."""

from __future__ import annotations

from prunepass.plans import Plain, Plan
from prunepass.search.knobs import Found
from prunepass.search.planning import Planning
from prunepass.search.trials import Trial

METHOD = "planned"
TOLD = 5
"""Layers whose price alone is told."""


def written_plan(planning: Planning, found: Found) -> Plan:
    """The best plan; its notes say what it costs and loses, what was tried, why it ended."""
    best, prices = found.best, planning.prices
    assert best is not None
    seen = planning.judge.verdict(best.steps, part="unseen")
    notes: dict[str, Plain] = {
        "macs_ratio": round(best.ratio, 4),
        "cost": round(best.cost, 4),
        "dense_cost": round(prices.dense, 4),
        "gain": round(prices.dense / best.cost, 3),
        "recipe": str(best.recipe),
        "kl": round(best.verdict.mean, 6),
        "kl_unseen": round(seen.mean, 6),
        "agreement_unseen": round(seen.quality("agreement"), 4),
        "tried": planning.trials.tried,
        "why": _why(planning, found),
        "front": planning.trials.front_notes(),
    }
    for name, single in (("tokens_alone", found.tokens), ("layers_alone", found.layers)):
        if single is not None:
            notes[name] = _single(planning, single)
    if prices.goal is not None:
        notes["target"] = str(prices.goal)
    if planning.floor is not None:
        notes["floor"] = str(planning.floor)
    if seen.right:
        notes["top1_unseen"] = round(seen.quality("top1"), 4)
    mark = planning.recipes.sites.fingerprint
    return Plan(method=METHOD, steps=best.steps, fingerprint=mark, notes=notes)


def _why(planning: Planning, found: Found) -> list[Plain]:
    """What happened, what single layers cost, why the search ended: sentences."""
    kind = planning.prices.kind
    layers = [
        f"{site} alone: KL {loss:.4f} for {share:.3f} of the {kind}"
        for site, loss, share in found.alone[:TOLD]
    ]
    end = "time was up" if planning.trials.over else "nothing left to try"
    return [*found.told, *layers, f"stopped: {end}"]


def _single(planning: Planning, trial: Trial) -> list[Plain]:
    """A trial with one knob: its recipe, divergence and agreement on pictures it did not see."""
    verdict = planning.judge.verdict(trial.steps, part="unseen")
    return [str(trial.recipe), round(verdict.mean, 6), round(verdict.quality("agreement"), 4)]
