"""The planner over everything: from a target and a floor to a plan, or to why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from prunepass.backends.protocol import Backend
from prunepass.backends.table import backend as find_backend
from prunepass.errors import BackendError, PlanError, PrunepassError, UsageError
from prunepass.planners.methods import DEFAULT
from prunepass.plans import Plain, Plan
from prunepass.search.judge import Judge
from prunepass.search.knobs import Found, search_at
from prunepass.search.latency import LatencyTable, latency_table, timed
from prunepass.search.memory import memory
from prunepass.search.recipe import Cost, Recipe, Recipes
from prunepass.search.target import Floor, Target, told
from prunepass.search.target import floor as parse_floor
from prunepass.search.target import target as parse_target
from prunepass.search.trials import Trial, Trials

PAYS = 1.05
"""A plan is declined if less than this is gained."""
NEAR = 0.03
"""How far, relatively, a measured latency may lie from its limit before the plan is changed."""
CHECKS = 3
METHOD = "planned"
Say = Callable[[str], None]


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
    batch: int = 1,
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
        batch: Examples a run, for latency.
        memory_file: Where verdicts are kept, so that a second call goes on where one stopped.
        cache: Folder of latency tables, None for the user's own.
        say: Told what is going on.
        progress: Told 1 for each trial.

    Raises:
        UsageError: Target or floor cannot be read, or there is neither.
        PlanError: The target cannot be met, the floor does not hold, or nothing pays.
        ModelError: Too few pictures, or no class scores.
        BackendError: A latency target, and the backend is missing.
    """
    goal = parse_target(target) if isinstance(target, str) else target
    least = parse_floor(floor) if isinstance(floor, str) else floor
    if goal is None and least is None:
        raise UsageError(
            "a planner needs a target or a floor", found="neither", fix="--target 'flops<=0.6'"
        )
    deadline = time.monotonic() + 60 * minutes
    judge = Judge(program, images, labels, seed=seed, memory=memory_file)
    if least is not None:
        _check_floor(judge, least)
    recipes = Recipes(program)
    prices = _Prices.of(recipes, goal, backend, batch, cache, say)
    trials = Trials(recipes, judge, prices.cost, deadline, progress)
    search = _Search(recipes, judge, trials, prices, goal, least, say or (lambda text: None))
    return search.run()


@dataclass(frozen=True)
class _Prices:
    """What a target counts in.

    Attributes:
        cost: What steps cost.
        dense: What the dense model costs.
        limit: What they may cost, None without a target.
        table: Of latencies.
        backend: Of latencies.
    """

    cost: Cost
    dense: float
    limit: float | None
    table: LatencyTable | None = None
    backend: Backend | None = None

    @staticmethod
    def of(
        recipes: Recipes, goal: Target | None, backend: str, batch: int, cache: Path | None,
        say: Say | None,
    ) -> _Prices:  # fmt: skip
        kind = goal.kind if goal is not None else "flops"
        if kind == "latency":
            chosen = find_backend(backend)
            reason = chosen.unavailable()
            if reason:
                raise BackendError(
                    f"latency on {backend!r} cannot be measured here", found=reason,
                    fix="--target 'flops<=0.6', or --backend eager",
                )  # fmt: skip
            table = latency_table(recipes, chosen, batch=batch, cache=cache, say=say)
            cost: Cost = partial(table.milliseconds, recipes)
            return _limited(_Prices(cost, table.dense_ms, None, table, chosen), goal)
        if kind == "memory":
            cost = partial(_memory, recipes.program)
        elif kind == "tokens":
            cost = recipes.tokens
        else:
            cost = recipes.ratio
        return _limited(_Prices(cost, cost(()), None), goal)


def _limited(prices: _Prices, goal: Target | None) -> _Prices:
    """Prices with the limit of a target; of a share, times what the dense model costs."""
    if goal is None:
        return prices
    return replace(prices, limit=goal.limit if goal.absolute else goal.limit * prices.dense)


def _memory(program: ExportedProgram, steps: object) -> float:
    return float(memory(program, steps))  # type: ignore[arg-type]


def _check_floor(judge: Judge, least: Floor) -> None:
    """Raises PlanError or UsageError where the dense model itself does not hold a floor."""
    if least.kind == "top1":
        if not judge.labelled:
            raise UsageError(
                "a floor of top1 needs labels",
                found="pictures without class numbers",
                fix="agreement>=0.98, or names such as 0007_cat.jpg",
            )
        right = judge.dense_top1()
        if not least.holds(right):
            raise PlanError(
                f"the dense model itself does not hold {least}",
                found=f"top-1 {right:.3f}",
                fix=f"--floor 'top1>={right - 0.01:.2f}'",
            )
        return
    noise = judge.noise().quality(least.kind)
    if not least.holds(noise):
        raise PlanError(
            f"the rounding of the dense model alone breaks {least}",
            found=f"{least.kind} {noise:.3g} between single and double precision",
            fix="kl<=0.01" if least.kind == "kl" else "agreement>=0.99",
        )


@dataclass
class _Search:
    """One search from its target to its plan."""

    recipes: Recipes
    judge: Judge
    trials: Trials
    prices: _Prices
    goal: Target | None
    least: Floor | None
    say: Say

    def run(self) -> Plan:
        """The plan, or a PlanError that says what was the best."""
        limit = self.prices.limit
        if limit is None:
            return self._cheapest()
        dense = self.prices.dense
        if limit >= dense / PAYS:
            raise PlanError(
                f"declined: {self.goal} gains less than {PAYS} times",
                found=f"the dense model costs {self._shown(dense)}",
                fix="use it as it is, or a lower target",
            )
        found = search_at(self.trials, limit, guess=min(1.0, limit / dense))
        if found.best is None:
            raise PlanError(
                f"{self.goal} cannot be met",
                found=f"the least that was reached is {self._shown(self._least())}",
                fix=f"a target from {self._shown(self._least() * 1.02)} on, or a smaller model",
            )
        found.best = self._on_this_machine(found.best, found, limit)
        if self.least is not None and not self._holds(found.best):
            raise self._too_lossy(found.best)
        return self._plan(found)

    def _cheapest(self) -> Plan:
        """As few MACs as the floor allows."""
        low, high, best = 0.2, 1.0, None
        for _ in range(7):
            if best is not None and self.trials.over:
                break
            middle = (low + high) / 2
            trial = self.trials.run(Recipe(DEFAULT), middle, guess=middle)
            if trial is not None and self._holds(trial, part="chosen"):
                best, high = trial, middle
            else:
                low = middle
        if best is None or best.ratio > 1 / PAYS:
            raise self._nothing_pays(best)
        found = search_at(self.trials, best.cost, guess=best.ratio)
        while found.best is not None and not self.trials.over:
            lower = 0.95 * found.best.cost
            trial = self.trials.run(found.best.recipe, lower, guess=lower)
            if trial is None or not self._holds(trial, part="chosen"):
                break
            found.best = trial
        if found.best is None:
            found.best = best
        while not self._holds(found.best):
            # It held where it was chosen, not on pictures it never saw: a step back.
            back = 1.04 * found.best.cost
            trial = self.trials.run(found.best.recipe, back, guess=back)
            if trial is None or trial.ratio > 1 / PAYS or trial.ratio <= found.best.ratio:
                raise self._nothing_pays(found.best)
            found.best = trial
        return self._plan(found)

    def _on_this_machine(self, best: Trial, found: Found, limit: float) -> Trial:
        """The plan whose engine, built and timed, meets a latency; others as they are."""
        table, backend = self.prices.table, self.prices.backend
        if table is None or backend is None:
            return best
        for _ in range(CHECKS):
            measured = timed(self.recipes.program, best.steps, backend, batch=table.batch)
            took = measured.ratio * table.dense_ms
            found.told.append(
                f"timed: {took:.2f} ms where {best.cost:.2f} ms were predicted "
                f"(dense {table.dense_ms:.2f} ms)"
            )
            best = replace(best, cost=took)
            if limit * (1 - NEAR) <= took <= limit * (1 + NEAR):
                break
            predicted = table.milliseconds(self.recipes, best.steps)
            table = replace(table, scale=table.scale * took / predicted)
            self.trials.cost = partial(table.milliseconds, self.recipes)
            again = self.trials.run(best.recipe, limit, guess=best.ratio)
            if again is None or again.steps == best.steps:
                break
            best = again
        if self.prices.dense / best.cost < PAYS:
            raise PlanError(
                f"declined: nothing gains {PAYS} times here",
                found=f"{best.recipe} takes {best.cost:.2f} ms, the dense model "
                f"{self.prices.dense:.2f} ms",
                fix="use the dense model, or a larger batch",
            )
        return best

    def _holds(self, trial: Trial, *, part: str = "unseen") -> bool:
        if self.least is None:
            return True
        return self.least.holds(self._quality(trial, part))

    def _quality(self, trial: Trial, part: str = "unseen") -> float:
        assert self.least is not None
        verdict = self.judge.verdict(trial.steps, part=part)
        return verdict.quality(self.least.kind)

    def _too_lossy(self, best: Trial) -> PlanError:
        """What can be had instead, where a floor does not hold at the target."""
        low, high, reached = best.ratio, 1.0, None
        for _ in range(5):
            middle = (low + high) / 2
            trial = self.trials.run(best.recipe, float("inf"), guess=middle)
            if trial is not None and self._holds(trial):
                reached, high = trial, middle
            else:
                low = middle
        so = f"; {self.least} holds down to {reached.ratio:.2f} of the MACs" if reached else ""
        return PlanError(
            f"{self.goal} and {self.least} cannot both be met",
            found=f"at {self._shown(best.cost)} the best plan has "
            f"{self._kind} {self._quality(best):.4g} ({best.recipe}){so}",
            fix=f"--target 'flops<={reached.ratio + 0.01:.2f}', or a lower floor"
            if reached
            else "a lower floor",
        )

    def _nothing_pays(self, best: Trial | None) -> PlanError:
        gain = 1.0 if best is None else 1 / best.ratio
        return PlanError(
            f"declined: nothing gains {PAYS} times and holds {self.least}",
            found=f"{gain:.2f} times is the most that was reached",
            fix="use the dense model, or a lower floor",
        )

    def _least(self) -> float:
        """The lowest cost that any recipe was brought to."""
        costs = [self.prices.dense]
        everything: tuple[str, ...] = ()
        for site in [s for s in self.recipes.droppable() if "." not in s]:
            everything = self.recipes.joined(everything, site) or everything
        for recipe in (
            Recipe(DEFAULT),
            Recipe(dropped=everything),
            Recipe(DEFAULT, None, everything),
        ):
            for ratio in (0.15, 0.25, 0.35, 0.5, 0.7):
                try:
                    costs.append(self.trials.cost(self.recipes.steps(recipe, ratio)))
                    break
                except PrunepassError:
                    continue
        return min(costs)

    @property
    def _kind(self) -> str:
        return self.least.kind if self.least is not None else "kl"

    def _shown(self, cost: float) -> str:
        kind = self.goal.kind if self.goal is not None else "flops"
        absolute = kind in ("latency", "memory")
        return f"{kind} {told(kind, cost, absolute=absolute)}"

    def _plan(self, found: Found) -> Plan:
        best = found.best
        assert best is not None
        seen = self.judge.verdict(best.steps, part="unseen")
        why = list(found.told)
        why += [
            f"{site} alone: KL {loss:.4f} for {share:.3f} of the MACs"
            for site, loss, share in found.alone[:5]
        ]
        why.append("stopped: " + ("time was up" if self.trials.over else "nothing left to try"))
        notes: dict[str, Plain] = {
            "macs_ratio": round(best.ratio, 4),
            "cost": round(best.cost, 4),
            "gain": round(self.prices.dense / best.cost, 3),
            "recipe": str(best.recipe),
            "kl": round(best.verdict.mean, 6),
            "kl_unseen": round(seen.mean, 6),
            "agreement_unseen": round(seen.quality("agreement"), 4),
            "tried": self.trials.tried,
            "why": list(why),
            "front": self.trials.front_notes(),
        }
        for name, single in (("tokens_alone", found.tokens), ("layers_alone", found.layers)):
            if single is not None:
                other = self.judge.verdict(single.steps, part="unseen")
                agreement = round(other.quality("agreement"), 4)
                notes[name] = [str(single.recipe), round(other.mean, 6), agreement]
        if self.goal is not None:
            notes["target"] = str(self.goal)
        if self.least is not None:
            notes["floor"] = str(self.least)
        if seen.right:
            notes["top1_unseen"] = round(seen.quality("top1"), 4)
        return Plan(
            method=METHOD, steps=best.steps, fingerprint=self.recipes.sites.fingerprint, notes=notes
        )
