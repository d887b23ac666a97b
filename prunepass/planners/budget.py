"""From a method and a budget of MACs to a plan."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.export import ExportedProgram

from prunepass.analyse.sites import sites as find_sites
from prunepass.errors import PlanError, UsageError, nearest
from prunepass.planners.cost import Reduction, Subject, TokenCost
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.methods import DEFAULT
from prunepass.planners.request import (
    Request,
    ask,
    exponent_of,
    kept_steps,
    published,
    refused_besides,
    schedule,
    unread_step,
)
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Action, Plain, Plan, Step, check_keep, check_share
from prunepass.records import Sites
from prunepass.rules.table import UNREAD

TOLERANCE = 0.01
"""How far, relatively, a plan's MACs may lie from what was asked."""


def plan(
    program: ExportedProgram,
    *,
    method: str = DEFAULT,
    flops: float | None = None,
    action: Action | None = None,
    at: Sequence[int] | None = None,
    exponent: float | None = None,
    keep: float | Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    calibration: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """A plan that brings a program to a share of its MACs.

    For methods of sparse activation (`wina` and the like) see `plan_inputs`, which is what they
    call with `keep`, `calibration` and `options`.

    Args:
        program: A labelled program, from `capture`.
        method: Name of a method (`prunepass methods` lists them).
        flops: MACs wanted, relative to the program's, in (0, 1]; scoring counts. None takes the
            method's published schedule.
        action: `drop` or `merge`, None for the method's own.
        at: Blocks where tokens are reduced, counted from 0; None for the method's own.
        exponent: How late tokens go, see `depth_counts`; None for the default of the budget.
        keep: Share of the tokens arriving at each block that stays, one for all or one for each,
            in place of a budget. Of sparse activation: the share of inputs that stay.
        options: Options of the rule, on top of the method's own; or further ones of `plan_inputs`.
        calibration: Texts as token numbers, of sparse activation.

    Raises:
        PlanError: The budget is outside (0, 1] or cannot be reached.
        UnsupportedGraph: The program has no site where this method can reduce tokens.
        UsageError: The method is unknown.
    """
    if method in INPUT_METHODS:
        others = {"action": action, "at": at, "exponent": exponent}
        _check_inputs(program, method, others, options or {})
        return plan_inputs(
            program, method=method, keep=_share(method, keep, flops), calibration=calibration,
            **(options or {}),
        )  # fmt: skip
    if calibration is not None:
        raise UsageError(
            f"method {method!r} reduces tokens", found="calibration=...", fix="flops=0.6"
        )
    restore: Any = (options or {}).get("restore")
    sites = find_sites(program, restore=restore)
    request = ask(sites, method_name=method, action=action, at=at, exponent=exponent)
    if options:
        more = {**request.method.options, **options}
        request = replace(request, method=replace(request.method, options=more))
    if keep is not None:
        if flops is not None:
            raise PlanError(
                "a plan has a budget or shares to keep",
                found=f"flops={flops} together with keep={keep}",
                fix="leave out one of them",
            )
        steps = kept_steps(request, keep)
        return finish(request, sites, cost_of(program, sites, request), steps, target=None)
    if flops is None:
        steps = published(request, sites)
        cost = cost_of(program, sites, request)
        return finish(request, sites, cost, steps, target=None)
    check_keep(float(flops), where="the budget (flops)")
    return fit(program, sites, request, flops=float(flops))


def _share(method: str, keep: float | Sequence[float] | None, flops: float | None) -> float:
    """The share of inputs that stays, as it was asked for."""
    if flops is not None or not isinstance(keep, (int, float)):
        raise UsageError(
            f"method {method!r} needs the share of inputs that stay",
            found="flops" if flops is not None else "no keep" if keep is None else f"keep={keep!r}",
            fix="keep=0.5",
        )
    check_share(keep)
    return float(keep)


def _check_inputs(
    program: object, method: str, others: Mapping[str, object], options: Mapping[str, Any]
) -> None:
    """Raises UsageError where a plan of sparse activation is asked for what it does not know."""
    if not isinstance(program, ExportedProgram):
        raise UsageError(
            "a plan is made for a program", found=f"a {type(program).__name__}",
            fix="prunepass.language.capture(model)",
        )  # fmt: skip
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(
            f"method {method!r} reduces no tokens", found=f"{given[0]}=...",
            fix="keep=0.5 and calibration=texts",
        )  # fmt: skip
    known = set(inspect.signature(plan_inputs).parameters)
    known -= {"program", "method", "keep", "calibration"}
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UsageError(
            f"method {method!r} has no option {unknown[0]!r}",
            found=f"{unknown[0]}={options[unknown[0]]!r}",
            fix=f"one of {nearest(unknown[0], known)}",
        )


def fit(
    program: Subject,
    sites: Sites,
    request: Request,
    *,
    flops: float,
    cost: TokenCost | None = None,
) -> Plan:
    """The plan of a request that meets a budget to within `TOLERANCE`.

    Args:
        program: A labelled program, or one opened.
        sites: Its sites.
        request: What is asked.
        flops: MACs wanted, relative to the program's, in (0, 1].
        cost: What `cost_of` gave, where it is known already.

    Raises:
        PlanError: No strength of the schedule reaches it.
    """
    cost = cost or cost_of(program, sites, request)
    if flops == 1.0:
        return finish(request, sites, cost, [], target=flops)
    exact = [unread_step(request.unread, sites)] if request.unread is not None else []

    def steps_at(strength: float) -> list[Step]:
        return [*schedule(request, sites, strength=strength, ratio=flops), *exact]

    def ratio_at(strength: float) -> float:
        return cost.ratio(priced(steps_at(strength), cost.tokens, sites))

    if exact and cost.ratio(priced(exact, cost.tokens, sites)) <= flops * (1 + TOLERANCE):
        # What nobody reads is enough: nothing has to be given up for this budget.
        return finish(request, sites, cost, exact, target=flops)
    low, high = 0.0, _strongest(request, cost.tokens, flops)
    if ratio_at(high) > flops * (1 + TOLERANCE):
        raise PlanError(
            f"method {request.method.name!r} cannot reach {flops:.3f} of the MACs",
            found=f"{ratio_at(high):.3f} at its strongest, over {len(request.sites)} sites, "
            f"{request.sites[0].module} to {request.sites[-1].module}"
            + refused_besides(sites, request.method),
            fix="a larger budget, or reduce at more blocks",
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_at(middle) > flops else (low, middle)
        if steps_at(low) == steps_at(high):
            break
    steps = min((steps_at(low), steps_at(high)), key=lambda s: abs(
        cost.ratio(priced(s, cost.tokens, sites)) - flops
    ))  # fmt: skip
    best = cost.ratio(priced(steps_at(high), cost.tokens, sites))
    if best <= flops and abs(best - flops) <= TOLERANCE * flops:
        steps = steps_at(high)
    reached = cost.ratio(priced(steps, cost.tokens, sites))
    if abs(reached - flops) > TOLERANCE * flops:
        # With few tokens the formula takes steps that are too large: a token or two at one site.
        halves = request.method.shape != "stages"
        near = _nearby(steps, cost.tokens, sites.always_kept, halves=halves)
        ratios = [(cost.ratio(priced(s, cost.tokens, sites)), s) for s in near]
        reached, steps = min([(reached, steps), *ratios], key=lambda found: abs(found[0] - flops))
    if abs(reached - flops) > TOLERANCE * flops:
        raise PlanError(
            f"method {request.method.name!r} has no schedule within 1 % of {flops:.3f} of the MACs",
            found=f"{reached:.3f} is the nearest",
            fix=f"--flops {reached:.3f}",
        )
    return finish(request, sites, cost, steps, target=flops)


def priced(steps: Sequence[Step], tokens: int, sites: Sites) -> list[Reduction]:
    """The reductions that steps amount to, with the tokens before and after each."""
    reductions = []
    for step in steps:
        after = step.count(tokens, sites.always_kept)
        reductions.append(Reduction(step.site, step.rule, step.action, step.options, tokens, after))
        tokens = after
    return reductions


def cost_of(program: Subject, sites: Sites, request: Request) -> TokenCost:
    """The cost model over the sites of a request."""
    labels = [s.label for s in request.sites]
    restore: Any = request.method.options.get("restore")
    return TokenCost(program, sites, labels, unread=request.unread, restore=restore)


def finish(
    request: Request, sites: Sites, cost: TokenCost, steps: Sequence[Step], *, target: float | None
) -> Plan:
    """A plan out of steps, those that remove nothing left out, with the ratio it predicts."""
    reductions = priced(steps, cost.tokens, sites)
    useful = tuple(s for s, r in zip(steps, reductions, strict=True) if r.after < r.before)
    notes: dict[str, Plain] = {"macs_ratio": round(cost.ratio(reductions), 4)}
    if target is not None:
        notes["flops"] = target
    return Plan(
        method=request.method.name, steps=useful, fingerprint=sites.fingerprint, notes=notes
    )


def _nearby(
    steps: Sequence[Step], tokens: int, prefix: int, *, halves: bool
) -> Iterator[list[Step]]:
    """The schedules that keep up to three tokens more or fewer at one site.

    Args:
        halves: No step may take more than half of the image tokens.
    """
    for place, changed in enumerate(steps):
        for change in (-3, -2, -1, 1, 2, 3) if changed.rule != UNREAD else ():
            before, made = tokens, []
            for i, step in enumerate(steps):
                keep = step.count(before, prefix) + (change if i == place else 0)
                most = (before - prefix) // 2
                if step.rule != UNREAD and not prefix < keep <= before:
                    break
                if step.rule != UNREAD and halves and before - keep > most:
                    break
                options = dict(step.options)
                similar = options.get("similar")
                if isinstance(similar, int):
                    options["similar"] = min(similar, before - keep, most)
                made.append(replace(step, keep=keep, options=options))
                before = keep
            else:
                yield made


def _strongest(request: Request, tokens: int, ratio: float) -> float:
    """A strength beyond which a schedule removes no more."""
    if request.method.shape == "depth":
        # Where the first site, which gives the smallest share, gives as much as any step can.
        return (2 * len(request.sites)) ** exponent_of(request, ratio)
    return {"constant": float(tokens), "stages": 64.0}[request.method.shape]
