"""How many inputs the layers of a decoder read: from a target and a floor to a plan.

One knob, the share of inputs that stays, and two ways to choose them. Which layer keeps more is
shared out on the texts that choose, where that is better by more than the noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.export import ExportedProgram

from prunepass.errors import PlanError, UsageError
from prunepass.planners.sparse_gain import SMALLEST
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Plain, Plan
from prunepass.search.judge import Verdict
from prunepass.search.planning import PAYS
from prunepass.search.target import Floor, Target, told
from prunepass.search.target import floor as parse_floor
from prunepass.search.target import target as parse_target
from prunepass.search.text_judge import TextJudge

METHODS = ("wina", "teal")
LEAST = 0.05
"""Share of inputs below which nothing is looked for."""
HALVINGS = 10


@dataclass(frozen=True)
class _Tried:
    """A plan and what it does on the texts that choose."""

    plan: Plan
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Share of the dense MACs of a token."""
        return float(self.plan.notes["macs_ratio"])  # type: ignore[arg-type]

    def __str__(self) -> str:
        notes = self.plan.notes
        return f"{self.plan.method} keep {notes['keep']:.3f}, {notes['allocation']}"


@dataclass
class _Search:
    """What one search has at hand."""

    program: ExportedProgram
    judge: TextJudge
    smallest: int
    deadline: float
    progress: Callable[[int], None]
    told: list[Plain]
    tried: int = 0

    def trial(self, method: str, keep: float, *, shared_out: bool = False) -> _Tried:
        """The plan of a share of inputs, judged."""
        plan = self.plan(method, keep, shared_out=shared_out)
        self.tried += 1
        self.progress(1)
        return _Tried(plan, self.judge.verdict(plan.steps))

    def plan(self, method: str, keep: float, *, shared_out: bool = False) -> Plan:
        """The plan of a share of inputs."""
        texts = self.judge.texts["chosen"] if shared_out else None
        return plan_inputs(
            self.program, method=method, keep=keep, calibration=texts, smallest=self.smallest
        )  # fmt: skip


def keep_for(
    program: ExportedProgram,
    speaking: ExportedProgram,
    texts: Sequence[Sequence[int]],
    *,
    target: str | Target | None = None,
    floor: str | Floor | None = None,
    minutes: float = 5.0,
    seed: int = 0,
    smallest: int = SMALLEST,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """The plan that lets a decoder read as many inputs as a target allows or a floor asks for.

    Args:
        program: From `prunepass.language.capture`.
        speaking: The same with the logits of every token, which it is judged by.
        texts: As token numbers; half of them choose, half tell.
        target: `flops<=X`, a share of the MACs of a token; None: as few as the floor allows.
        floor: `agreement>=A` of tokens, or `kl<=K`; None for none.
        minutes: Time after which nothing new is tried, > 0.
        seed: Of the split.
        smallest: Numbers of a weight below which a layer stays dense.
        progress: Told 1 for each trial.

    Raises:
        UsageError: Target or floor cannot be read, or is of another kind, or there is neither.
        PlanError: The target cannot be met, the floor does not hold, or nothing pays.
        ModelError: There are too few texts.
        UnsupportedGraph: No layer gains from reading fewer inputs.
    """
    goal = parse_target(target) if isinstance(target, str) else target
    least = parse_floor(floor) if isinstance(floor, str) else floor
    _check_kinds(goal, least)
    judge = TextJudge(speaking, texts, seed=seed)
    deadline = time.monotonic() + 60 * minutes
    search = _Search(program, judge, smallest, deadline, progress or (lambda count: None), [])
    if goal is None:
        assert least is not None
        best = _cheapest(search, least)
    else:
        best = _at(search, goal)
        if least is not None and not _holds(search, best, least):
            raise _too_lossy(search, best, goal, least)
    return _written(search, best, goal, least)


def _check_kinds(goal: Target | None, least: Floor | None) -> None:
    if goal is None and least is None:
        raise UsageError(
            "a planner needs a target or a floor", found="neither", fix="--target 'flops<=0.6'"
        )
    if goal is not None and goal.kind != "flops":
        raise UsageError(
            "the target of a language model counts MACs", found=str(goal),
            fix="--target 'flops<=0.6'; `prunepass bench` times what comes out",
        )  # fmt: skip
    if least is not None and least.kind == "top1":
        raise UsageError(
            "texts have no labels", found=str(least), fix="--floor 'agreement>=0.95' or 'kl<=0.05'"
        )


def _at(search: _Search, goal: Target) -> _Tried:
    """The best plan of a share of the MACs."""
    if goal.limit * PAYS > 1:
        raise PlanError(
            f"declined: {goal} gains less than {PAYS} times", found="the dense model costs 1.000",
            fix="use it as it is, or a lower target",
        )  # fmt: skip
    found = [search.trial(method, _keep_at(search, method, goal)) for method in METHODS]
    search.told += [f"{one}: KL {one.verdict.mean:.4f}" for one in found]
    return _shared_out(search, min(found, key=lambda one: one.verdict.mean))


def _keep_at(search: _Search, method: str, goal: Target) -> float:
    """The largest share of inputs whose MACs meet a target."""
    low, high = LEAST, 1.0
    least = float(search.plan(method, low).notes["macs_ratio"])  # type: ignore[arg-type]
    if least > goal.limit:
        raise PlanError(
            f"{goal} cannot be met", found=f"the least that was reached is flops {least:.3f}",
            fix=f"--target 'flops<={least + 0.01:.2f}'",
        )  # fmt: skip
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        ratio = float(search.plan(method, middle).notes["macs_ratio"])  # type: ignore[arg-type]
        low, high = (middle, high) if ratio <= goal.limit else (low, middle)
    return low


def _shared_out(search: _Search, best: _Tried) -> _Tried:
    """The same share, by layers as they lose, where that is better by more than the noise."""
    if time.monotonic() > search.deadline:
        return best
    keep = float(best.plan.notes["keep"])  # type: ignore[arg-type]
    other = search.trial(best.plan.method, keep, shared_out=True)
    gain, error = other.verdict.gain_over(best.verdict)
    search.told.append(f"shared out among layers: KL {-gain:+.4f} +- {error:.4f}")
    return other if gain > error and other.ratio <= best.ratio + 0.005 else best


def _cheapest(search: _Search, least: Floor) -> _Tried:
    """The fewest inputs that keep a floor, on texts that chose and on those that did not."""
    low, high, best = LEAST, 1.0, None
    for _ in range(HALVINGS):
        if best is not None and time.monotonic() > search.deadline:
            break
        middle = (low + high) / 2
        trial = search.trial(METHODS[0], middle)
        if least.holds(trial.verdict.quality(least.kind)) and _holds(search, trial, least):
            best, high = trial, middle
        else:
            low = middle
    if best is None or best.ratio * PAYS > 1:
        raise PlanError(
            f"declined: nothing gains {PAYS} times and holds {least}",
            found="all inputs are needed" if best is None else f"{1 / best.ratio:.2f} times",
            fix="use the dense model, or a lower floor",
        )
    return best


def _holds(search: _Search, trial: _Tried, least: Floor) -> bool:
    return least.holds(search.judge.verdict(trial.plan.steps, part="unseen").quality(least.kind))


def _too_lossy(search: _Search, best: _Tried, goal: Target, least: Floor) -> PlanError:
    said = search.judge.verdict(best.plan.steps, part="unseen").quality(least.kind)
    try:
        reached = _cheapest(search, least).ratio
    except PlanError:
        return PlanError(
            f"{goal} and {least} cannot both be met",
            found=f"the best plan has {least.kind} {said:.4g} ({best})", fix="a lower floor",
        )  # fmt: skip
    return PlanError(
        f"{goal} and {least} cannot both be met",
        found=f"the best plan has {least.kind} {said:.4g} ({best}); {least} holds down to flops "
        + told("flops", reached, absolute=False),
        fix=f"--target 'flops<={reached + 0.005:.2f}', or a lower floor",
    )


def _written(search: _Search, best: _Tried, goal: Target | None, least: Floor | None) -> Plan:
    """The plan with what a search has to say about it."""
    seen = search.judge.verdict(best.plan.steps, part="unseen")
    late = time.monotonic() > search.deadline
    notes: dict[str, Plain] = {
        **best.plan.notes,
        "recipe": str(best),
        "kl": round(best.verdict.mean, 6),
        "kl_unseen": round(seen.mean, 6),
        "agreement_unseen": round(seen.quality("agreement"), 4),
        "tried": search.tried,
        "why": [*search.told, f"stopped: {'time was up' if late else 'nothing left to try'}"],
    }
    if goal is not None:
        notes["target"] = str(goal)
    if least is not None:
        notes["floor"] = str(least)
    return replace(best.plan, notes=notes)
