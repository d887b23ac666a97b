"""The planner over everything: from a target and a floor to a plan, or to why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from prunepass.errors import UsageError
from prunepass.plans import Plan
from prunepass.search.at_target import at_target
from prunepass.search.cheapest import cheapest
from prunepass.search.dense_floor import check_floor
from prunepass.search.engines import Timer
from prunepass.search.judge import Judge
from prunepass.search.latency import Say
from prunepass.search.planning import Planning
from prunepass.search.prices import prices
from prunepass.search.recipe import Recipes
from prunepass.search.target import Floor, Target
from prunepass.search.target import floor as parse_floor
from prunepass.search.target import target as parse_target
from prunepass.search.trials import Trials
from prunepass.search.written import written_plan


def plan_for(
    program: ExportedProgram,
    images: Tensor,
    *,
    target: str | Target | None = None,
    floor: str | Floor | None = None,
    labels: Tensor | None = None,
    minutes: float = 5.0,
    seed: int = 0,
    backend: str = "onnx",
    batch: int | None = None,
    timer: Timer | None = None,
    memory_file: Path | None = None,
    cache: Path | None = None,
    say: Say | None = None,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """The plan that meets a target with the least loss; the planner decides how.

    It tries ways to reduce tokens, their schedules, layers and branches to drop, and both together
    at the same cost. Half of the pictures choose, the other half tell. What was tried and why it
    stopped stands in the notes of the plan, with the front of all trials.

    Args:
        program: A labelled program that returns class scores.
        images: Prepared pictures [N, 3, H, W], N >= 8.
        target: Such as `flops<=0.6`, `latency<=12ms`, `memory<=20MB`, `tokens<=0.5`. None: as
            little MACs as the floor allows.
        floor: Such as `agreement>=0.98`, `kl<=0.05`, `top1>=0.8`; None for none.
        labels: [N] int64, -1 for unknown; needed for a floor of `top1`.
        minutes: Time after which nothing new is tried, > 0.
        seed: Of the split.
        backend: Whose latency counts.
        batch: Examples a run, for latency; None for one, in an engine that takes any number.
        timer: Builds and times engines, for a machine that is not this one; None for this one.
        memory_file: Where verdicts are kept, so that a second call goes on where one stopped.
        cache: Folder of latency tables, None for the user's own.
        say: Told what is going on.
        progress: Told 1 for each trial.

    Raises:
        UsageError: Target or floor cannot be read, or there is neither.
        PlanError: The target cannot be met, the floor does not hold, or nothing pays.
        ModelError: Too few pictures, such as the model does not take, or no class scores.
        BackendError: A latency target, and the backend is missing.
    """
    goal = parse_target(target) if isinstance(target, str) else target
    least = parse_floor(floor) if isinstance(floor, str) else floor
    if goal is None and least is None:
        raise UsageError(
            "a planner needs a target or a floor", found="neither", fix="--target 'flops<=0.6'"
        )
    said = say or (lambda text: None)
    deadline = time.monotonic() + 60 * minutes
    judge = Judge(program, images, labels, seed=seed, memory=memory_file)
    if least is not None:
        check_floor(judge, least)
    recipes = Recipes(program)
    priced = prices(
        recipes, goal, backend=backend, batch=batch, cache=cache, timer=timer, say=said
    )  # fmt: skip
    trials = Trials(recipes, judge, priced.cost, deadline, progress)
    planning = Planning(recipes, judge, trials, priced, least, said)
    found = cheapest(planning) if goal is None else at_target(planning)
    return written_plan(planning, found)
