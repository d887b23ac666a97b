"""Searching a schedule on pictures: few free numbers, chosen on one half, told by the other.

The published search for Zero-TPrune is Monte-Carlo over places and ratios. A free count at every
block over-fits a few hundred pictures, so here a schedule has one or two free numbers, and what is
reported is measured on pictures that played no part in choosing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.analyse.sites import sites as find_sites
from prunepass.errors import ModelError, PlanError
from prunepass.graph.edit import open_module
from prunepass.measure.fidelity import kl
from prunepass.passes.reduce_tokens import draft
from prunepass.planners.budget import fit
from prunepass.planners.methods import DEFAULT
from prunepass.planners.request import Request, ask
from prunepass.planners.schedule import default_exponent
from prunepass.plans import Action, Plan
from prunepass.records import Sites

BATCH = 25
EXPONENTS = (0.0, -0.25, 0.25, -0.5, 0.5, -0.75, 0.75)
"""Tried around the default exponent of a depth schedule, nearest first."""
SAMPLES = 100
"""Schedules drawn at most where places are free."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        plan: The best plan.
        tried: Schedules tried.
        kl_fit: Its mean KL divergence from the dense model where it was chosen, nats.
        kl_unseen: The same on pictures the search did not see.
        kl_error: Standard error of `kl_unseen`.
        agreement_unseen: Share of unseen pictures with the dense model's first class.
    """

    plan: Plan
    tried: int
    kl_fit: float
    kl_unseen: float
    kl_error: float
    agreement_unseen: float


def search(
    program: ExportedProgram,
    images: Tensor,
    *,
    method: str = DEFAULT,
    flops: float,
    action: Action | None = None,
    at: Sequence[int] | None = None,
    minutes: float = 5.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """The schedule of least KL divergence from the dense model within a budget.

    Args:
        program: A labelled program that returns class scores [B, classes].
        images: Prepared pictures [N, 3, H, W], N >= 4; half of them choose, half report.
        method: Name of a method.
        flops: MACs wanted relative to the dense model, in (0, 1].
        action: `drop` or `merge`, None for the method's own.
        at: Blocks where tokens are reduced, None for the method's own.
        minutes: Time after which no new schedule is tried, > 0.
        seed: Of the split and of the drawing.
        progress: Told 1 for each schedule tried.

    Raises:
        ModelError: Too few pictures, or no class scores.
        PlanError: No schedule reaches the budget.
    """
    if len(images) < 4:
        raise ModelError(
            "a search needs at least 4 pictures", found=str(len(images)), fix="another --images"
        )
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    chosen, unseen = images[order[: len(order) // 2]], images[order[len(order) // 2 :]]
    sites = find_sites(program)
    request = ask(sites, method_name=method, action=action, at=at)
    dense = open_module(program)
    wanted = _scores(dense, chosen)
    stop = time.monotonic() + 60 * minutes
    best: tuple[float, Plan] | None = None
    tried = 0
    refusal: PlanError | None = None
    blocks = None if at is None else set(at)
    for candidate in _candidates(request, sites, flops, blocks, random.Random(seed)):
        if best is not None and time.monotonic() > stop:
            break
        try:
            plan = fit(program, sites, candidate, flops=flops)
        except PlanError as error:
            refusal = error
            continue
        loss = float(kl(wanted, _compressed(program, plan, chosen)).mean())
        tried += 1
        if best is None or loss < best[0]:
            best = (loss, plan)
        if progress is not None:
            progress(1)
    if best is None:
        raise refusal or PlanError("no schedule to try", found="0 candidates", fix="another budget")
    loss, plan = best
    before, after = _scores(dense, unseen), _compressed(program, plan, unseen)
    told = kl(before, after)
    notes = {
        **plan.notes,
        "search": f"{tried} schedules on {len(chosen)} pictures",
        "kl_unseen": round(float(told.mean()), 6),
    }
    return Found(
        plan=replace(plan, notes=notes),
        tried=tried,
        kl_fit=loss,
        kl_unseen=float(told.mean()),
        kl_error=float(told.std() / len(told) ** 0.5),
        agreement_unseen=float((before.argmax(1) == after.argmax(1)).double().mean()),
    )


def _candidates(
    request: Request, sites: Sites, flops: float, blocks: set[int] | None, draw: random.Random
) -> Iterator[Request]:
    """Requests to try, the default first; places are drawn among `blocks`, None for all."""
    if request.method.shape != "stages":
        if request.method.shape == "constant":
            yield request
        deeper = replace(request, method=replace(request.method, shape="depth"))
        for change in EXPONENTS:
            exponent = default_exponent(flops) + change
            if exponent >= 0:
                yield replace(deeper, exponent=exponent)
        return
    yield request
    places = [
        s
        for s in sites.reducible(request.method.place)
        if set(request.sites[0].roles) <= set(s.roles)
        and s.tokens == request.sites[0].tokens
        and (request.unread is None or s.block < sites[request.unread].block)
        and (blocks is None or s.block in blocks)
    ]
    seen = {request.sites}
    for _ in range(SAMPLES):
        count = draw.randint(min(2, len(places)), min(6, len(places)))
        picked = tuple(sorted(draw.sample(places, count), key=lambda s: s.block))
        if picked not in seen:
            seen.add(picked)
            yield replace(request, sites=picked)


def _compressed(program: ExportedProgram, plan: Plan, images: Tensor) -> Tensor:
    if not plan.steps:
        return _scores(open_module(program), images)
    return _scores(draft(program, plan.steps)[0], images)


def _scores(module: nn.Module, images: Tensor) -> Tensor:
    found = []
    with torch.no_grad():
        for part in images.split(BATCH):
            # A program keeps the batch it was exported with apart from 1 only.
            padded = part if len(part) > 1 else part.expand(2, *part.shape[1:])
            output = module(padded)
            scores = output[0] if isinstance(output, (tuple, list)) else output
            found.append(scores[: len(part)])
    scores = torch.cat(found)
    if scores.dim() != 2:
        raise ModelError(
            "a search needs class scores",
            found=f"an output of shape {list(scores.shape)}",
            fix="a plan without --images",
        )
    return scores
