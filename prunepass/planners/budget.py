"""From a method and a budget of MACs to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.export import ExportedProgram

from prunepass.analyse.sites import sites as find_sites
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.plan import Action, Plain, Plan, Step, check_keep
from prunepass.planners.cost import Reduction, TokenCost
from prunepass.planners.methods import (
    DEFAULT,
    DOWNSAMPLE,
    EVIT,
    ZERO_TPRUNE_DEIT_S,
    Method,
    Stages,
    method,
)
from prunepass.planners.schedule import (
    constant_counts,
    default_exponent,
    depth_counts,
    stage_counts,
)
from prunepass.records import Site, Sites
from prunepass.rules.table import UNREAD, rule

TOLERANCE = 0.01
"""How far, relatively, a plan's MACs may lie from what was asked."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a plan is asked to do.

    Attributes:
        method: The method.
        action: `drop` or `merge`.
        sites: The sites where tokens are reduced, in graph order.
        exponent: Exponent of a `depth` schedule, None for the default of the budget.
        unread: Label of the site behind which only prefix tokens are read, or None.
    """

    method: Method
    action: Action
    sites: tuple[Site, ...]
    exponent: float | None
    unread: str | None


def plan(
    program: ExportedProgram,
    *,
    method: str = DEFAULT,
    flops: float | None = None,
    action: Action | None = None,
    at: Sequence[int] | None = None,
    exponent: float | None = None,
) -> Plan:
    """A plan that brings a program to a share of its MACs.

    Args:
        program: A labelled program, from `capture`.
        method: Name of a method (`prunepass methods` lists them).
        flops: MACs wanted, relative to the program's, in (0, 1]; scoring counts. None takes the
            method's published schedule.
        action: `drop` or `merge`, None for the method's own.
        at: Blocks where tokens are reduced, counted from 0; None for the method's own.
        exponent: How late tokens go, see `depth_counts`; None for the default of the budget.

    Raises:
        PlanError: The budget is outside (0, 1] or cannot be reached.
        UnsupportedGraph: The program has no site where this method can reduce tokens.
        UsageError: The method is unknown.
    """
    sites = find_sites(program)
    request = ask(sites, method_name=method, action=action, at=at, exponent=exponent)
    if flops is None:
        steps = published(request, sites)
        cost = cost_of(program, sites, request)
        return finish(request, sites, cost, steps, target=None)
    check_keep(float(flops), where="the budget (flops)")
    return fit(program, sites, request, flops=float(flops))


def fit(program: ExportedProgram, sites: Sites, request: Request, *, flops: float) -> Plan:
    """The plan of a request that meets a budget to within `TOLERANCE`.

    Raises:
        PlanError: No strength of the schedule reaches it.
    """
    cost = cost_of(program, sites, request)
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
            + _refused_besides(sites, request.method),
            fix="a larger budget, or reduce at more blocks",
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_at(middle) > flops else (low, middle)
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
        near = _nearby(steps, cost.tokens, sites.prefix_tokens, halves=halves)
        ratios = [(cost.ratio(priced(s, cost.tokens, sites)), s) for s in near]
        reached, steps = min([(reached, steps), *ratios], key=lambda found: abs(found[0] - flops))
    if abs(reached - flops) > TOLERANCE * flops:
        raise PlanError(
            f"method {request.method.name!r} has no schedule within 1 % of {flops:.3f} of the MACs",
            found=f"{reached:.3f} is the nearest",
            fix=f"--flops {reached:.3f}",
        )
    return finish(request, sites, cost, steps, target=flops)


def ask(
    sites: Sites,
    *,
    method_name: str,
    action: Action | None = None,
    at: Sequence[int] | None = None,
    exponent: float | None = None,
) -> Request:
    """A request, checked against the sites a program has.

    Raises:
        UnsupportedGraph: There is no site for it; says what stands in the way.
        PlanError: A block in `at` does not exist.
    """
    chosen = method(method_name)
    needs = set(rule(chosen.rule).needs)
    everywhere = sites.reducible(chosen.place)
    usable = [s for s in everywhere if needs <= set(s.roles) and s.tokens == everywhere[0].tokens]
    unread = _unread(sites)
    if unread is not None:
        usable = [s for s in usable if s.block < sites[unread].block]
    if not usable:
        raise UnsupportedGraph(
            f"this model has no site where {method_name!r} can reduce tokens",
            found=_why_not(sites, chosen, needs),
            fix=f"smaller pictures (--method {DOWNSAMPLE}), which every model supports that takes "
            "them; `prunepass inspect MODEL` lists each site with its reason",
        )
    # All blocks count, also the last, where only prefix tokens may be read.
    depth = 1 + max(s.block for s in everywhere)
    if at is not None:
        known = {s.block: s for s in usable}
        unknown = [b for b in at if b not in known]
        if unknown:
            raise PlanError(
                f"no tokens can be reduced at block {unknown[0]}",
                found=f"blocks {min(known)} to {max(known)} can",
                fix="choose among these",
            )
        usable = [known[b] for b in sorted(set(at))]
    elif chosen.shape == "stages":
        stages = _stages(chosen)
        wanted = sorted({max(1, round(b * depth / stages.depth)) - 1 for b in stages.blocks})
        usable = [s for s in usable if s.block in wanted]
    if not usable:
        raise UnsupportedGraph(
            f"this model has no block where {method_name!r} would reduce tokens",
            found=f"{depth} blocks",
            fix="name blocks with --at",
        )
    return Request(
        method=chosen,
        action=action or chosen.action,
        sites=tuple(usable),
        exponent=exponent,
        unread=unread,
    )


def schedule(request: Request, sites: Sites, *, strength: float, ratio: float) -> list[Step]:
    """The steps of a request at a strength >= 0; 0 removes (almost) nothing."""
    tokens, prefix = request.sites[0].tokens, sites.prefix_tokens
    shape = request.method.shape
    if shape == "depth":
        counts = depth_counts(
            len(request.sites), tokens, prefix, strength=strength,
            exponent=_exponent(request, ratio),
        )  # fmt: skip
    elif shape == "constant":
        counts = constant_counts(len(request.sites), tokens, prefix, removed=strength)
    else:
        return _stage_steps(request, tokens, prefix, strength)
    return [
        _step(request, site, keep, request.method.options)
        for site, keep in zip(request.sites, counts, strict=True)
    ]


def published(request: Request, sites: Sites) -> list[Step]:
    """The steps of a method's published schedule, scaled to this depth and token count.

    Raises:
        PlanError: The method has none.
    """
    if request.method.shape != "stages":
        raise PlanError(
            f"method {request.method.name!r} needs a budget",
            found="no --flops",
            fix="--flops 0.6 asks for 60 % of the MACs",
        )
    return _stage_steps(request, request.sites[0].tokens, sites.prefix_tokens, 1.0)


def priced(steps: Sequence[Step], tokens: int, sites: Sites) -> list[Reduction]:
    """The reductions that steps amount to, with the tokens before and after each."""
    reductions = []
    for step in steps:
        after = step.count(tokens, sites.prefix_tokens)
        reductions.append(Reduction(step.site, step.rule, step.action, step.options, tokens, after))
        tokens = after
    return reductions


def cost_of(program: ExportedProgram, sites: Sites, request: Request) -> TokenCost:
    """The cost model over the sites of a request."""
    labels = [s.label for s in request.sites]
    return TokenCost(program, sites, labels, unread=request.unread)


def unread_step(site: str, sites: Sites) -> Step:
    """The step that stops computing, from the last attention on, what no output reads."""
    return Step(kind="reduce_tokens", site=site, rule=UNREAD, keep=sites.prefix_tokens)


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


def _stage_steps(request: Request, tokens: int, prefix: int, strength: float) -> list[Step]:
    """Stages of a published schedule; `strength` 1 is the published one, 0 keeps almost all."""
    stages = _stages(request.method)
    scale = tokens / stages.tokens
    picks = _picks(len(request.sites), len(stages.blocks))
    ratios = [stages.ratios[i] ** strength for i in picks]
    similar = [round(stages.similar[i] * scale * min(1.0, strength)) for i in picks]
    if strength > 4:
        # Stages that only remove duplicates must help where little is to be left.
        ratios = [r if r < 1 else 0.9 ** (strength - 4) for r in ratios]
    counts = stage_counts(tokens, prefix, ratios=ratios, similar=similar)
    steps, before = [], tokens
    for site, keep, gone, pick in zip(request.sites, counts, similar, picks, strict=True):
        options: dict[str, Plain] = dict(request.method.options)
        if "iterations" in rule(request.method.rule).options:
            options["iterations"] = stages.iterations[pick]
        if "similar" in rule(request.method.rule).options:
            options["similar"] = min(gone, before - keep, (before - prefix) // 2)
        steps.append(_step(request, site, keep, options))
        before = keep
    return steps


def _step(request: Request, site: Site, keep: int, options: Mapping[str, Plain]) -> Step:
    return Step(
        kind="reduce_tokens",
        site=site.label,
        rule=request.method.rule,
        keep=keep,
        action=request.action,
        options=dict(options),
    )


def _stages(chosen: Method) -> Stages:
    return EVIT if chosen.rule == "cls-attention" else ZERO_TPRUNE_DEIT_S


def _picks(wanted: int, known: int) -> list[int]:
    """Which of `known` published stages each of `wanted` stages follows."""
    if wanted == known:
        return list(range(known))
    return [min(known - 1, i * known // wanted) for i in range(wanted)]


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
        return (2 * len(request.sites)) ** _exponent(request, ratio)
    return {"constant": float(tokens), "stages": 64.0}[request.method.shape]


def _exponent(request: Request, ratio: float) -> float:
    return default_exponent(ratio) if request.exponent is None else request.exponent


def _unread(sites: Sites) -> str | None:
    """The last attention, if what follows it reads prefix tokens only."""
    candidates = sites.reducible("attention")
    return candidates[-1].label if sites.reads_prefix_only and len(candidates) > 1 else None


def _refused_besides(sites: Sites, chosen: Method) -> str:
    refused = [s.refusal for s in sites if s.kind == chosen.place and s.refusal]
    return f"; {len(refused)} more refuse, the first: {refused[0]}" if refused else ""


def _why_not(sites: Sites, chosen: Method, needs: set[str]) -> str:
    if not len(sites):
        return f"no attention block with a token stream [B, T, C] was recognised; {sites.missing}"
    candidates = [s for s in sites if s.kind == chosen.place]
    refused = [s.refusal for s in candidates if s.refusal]
    if refused:
        return f"{len(refused)} of {len(candidates)} sites refuse; the first: {refused[0]}"
    lacking = sorted(needs - set(candidates[0].roles)) if candidates else sorted(needs)
    return f"its blocks do not have {', '.join(lacking)}"
