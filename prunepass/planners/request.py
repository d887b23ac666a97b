"""What a plan is asked to do, and the steps that a schedule makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunepass.analyse.refusals import CARRIED
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.planners.methods import (
    DOWNSAMPLE,
    EVIT,
    TOP_VIM,
    ZERO_TPRUNE_DEIT_S,
    Method,
    Stages,
    method,
)
from prunepass.planners.schedule import (
    LEAST,
    constant_counts,
    default_exponent,
    depth_counts,
    stage_counts,
)
from prunepass.plans import Action, Plain, Step, check_keep
from prunepass.records import Site, Sites
from prunepass.rules.table import UNREAD, rule


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
    if chosen.rule == "cls-attention" and sites.prefix_tokens == 0:
        raise UnsupportedGraph(
            f"this model has no class token in front, which {method_name!r} goes by",
            found="0 prefix tokens",
            fix="page-rank or received-attention, which need none",
        )
    if not usable:
        raise UnsupportedGraph(
            f"this model has no site where {method_name!r} can reduce tokens",
            found=_why_not(sites, chosen, needs),
            fix=_instead(sites, everywhere),
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


def _instead(sites: Sites, everywhere: Sequence[Site]) -> str:
    """What to try on a model that a method does not fit."""
    if any(site.refusal == CARRIED for site in sites.items):
        last = max(site.block for site in sites.items)
        return f"let all tokens come back behind the blocks: --option restore=block[{last}].output"
    if any("scan_output" in site.roles for site in everywhere):
        return "--method ssm-align, which scores tokens by what comes out of a scan"
    return (
        f"smaller pictures (--method {DOWNSAMPLE}), which every model supports that takes them; "
        "`prunepass inspect MODEL` lists each site with its reason"
    )


def schedule(request: Request, sites: Sites, *, strength: float, ratio: float) -> list[Step]:
    """The steps of a request at a strength >= 0; 0 removes (almost) nothing."""
    tokens, prefix = request.sites[0].tokens, sites.always_kept
    shape = request.method.shape
    if shape == "depth":
        counts = depth_counts(
            len(request.sites), tokens, prefix, strength=strength,
            exponent=exponent_of(request, ratio), least=LEAST,
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
    return _stage_steps(request, request.sites[0].tokens, sites.always_kept, 1.0)


def kept_steps(request: Request, keep: float | Sequence[float]) -> list[Step]:
    """Steps that keep a share of the tokens that arrive at each site of a request.

    Raises:
        PlanError: There are not as many shares as sites.
    """
    every = [float(keep)] * len(request.sites) if isinstance(keep, (int, float)) else list(keep)
    every = every * len(request.sites) if len(every) == 1 else every
    if len(every) != len(request.sites):
        raise PlanError(
            "each block needs a share to keep",
            found=f"{len(every)} shares for {len(request.sites)} blocks",
            fix="one share for all of them, or one for each of --at",
        )
    for share in every:
        check_keep(float(share), where="a share to keep")
    return [
        _step(request, site, float(share), request.method.options)
        for site, share in zip(request.sites, every, strict=True)
    ]


def unread_step(site: str, sites: Sites) -> Step:
    """The step that stops computing, from the last attention on, what no output reads."""
    return Step(kind="reduce_tokens", site=site, rule=UNREAD, keep=sites.prefix_tokens)


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


def _step(request: Request, site: Site, keep: int | float, options: Mapping[str, Plain]) -> Step:
    return Step(
        kind="reduce_tokens",
        site=site.label,
        rule=request.method.rule,
        keep=keep,
        action=request.action,
        options=dict(options),
    )


def _stages(chosen: Method) -> Stages:
    own = {"cls-attention": EVIT, "scan-output": TOP_VIM, "similar-hidden": TOP_VIM}
    return own.get(chosen.rule, ZERO_TPRUNE_DEIT_S)


def _picks(wanted: int, known: int) -> list[int]:
    """Which of `known` published stages each of `wanted` stages follows."""
    if wanted == known:
        return list(range(known))
    return [min(known - 1, i * known // wanted) for i in range(wanted)]


def exponent_of(request: Request, ratio: float) -> float:
    """The exponent of a `depth` schedule that is to reach a MAC ratio."""
    return default_exponent(ratio) if request.exponent is None else request.exponent


def _unread(sites: Sites) -> str | None:
    """The last attention, if what follows it reads prefix tokens only."""
    candidates = sites.reducible("attention")
    return candidates[-1].label if sites.reads_prefix_only and len(candidates) > 1 else None


def refused_besides(sites: Sites, chosen: Method) -> str:
    """How many more sites a method could use if they did not refuse, as the end of a sentence."""
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
