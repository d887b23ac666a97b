"""What a target counts in: what plans cost, what the dense model costs, how much may be spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunepass.backends.protocol import Backend
from prunepass.backends.table import backend as find_backend
from prunepass.errors import BackendError
from prunepass.plans import Step
from prunepass.search.engines import EngineTimer, Timed, Timer
from prunepass.search.latency import LatencyTable, Say, measured_table
from prunepass.search.latency_cache import place_of, read_table, write_table
from prunepass.search.memory import memory
from prunepass.search.recipe import Cost, Recipes, key_of
from prunepass.search.target import Target, told

ABSOLUTE = ("latency", "memory")
"""Costs that are told in units of their own; the others are shares."""


@dataclass(frozen=True)
class Machine:
    """Where latency counts.

    Attributes:
        timer: Builds and times engines there.
        table: What plans take there, predicted.
    """

    timer: Timer
    table: LatencyTable


@dataclass(frozen=True)
class Prices:
    """What a target counts in.

    Attributes:
        kind: `flops`, `latency`, `memory` or `tokens`.
        cost: What steps cost: shares of MACs or tokens, milliseconds, bytes.
        dense: What the dense model costs.
        goal: What is asked for, None for as little as possible.
        machine: Of latencies.
    """

    kind: str
    cost: Cost
    dense: float
    goal: Target | None = None
    machine: Machine | None = None

    @property
    def limit(self) -> float | None:
        """What a plan may cost, None without a target."""
        if self.goal is None:
            return None
        return self.goal.limit if self.goal.absolute else self.goal.limit * self.dense

    def shown(self, cost: float) -> str:
        """A cost as a person reads it."""
        return f"{self.kind} {told(self.kind, cost, absolute=self.kind in ABSOLUTE)}"

    def asking(self, cost: float) -> str:
        """The target, in the terms of the one that was asked, that a cost meets."""
        absolute = self.goal is not None and self.goal.absolute
        return str(Target(self.kind, cost if absolute else cost / self.dense, absolute))

    def took(self, timed: Timed) -> float:
        """Milliseconds of a timed plan, as the target counts them."""
        # Of a share, the paired ratio, which is steadier than two times taken apart.
        absolute = self.goal is not None and self.goal.absolute
        return timed.milliseconds if absolute else timed.ratio * self.dense

    def corrected(self, recipes: Recipes, factor: float) -> Prices:
        """Prices where engines turned out to take `factor` times what was predicted."""
        assert self.machine is not None
        table = self.machine.table.corrected(factor)
        cost = _latency(recipes, table, self.dense)
        return replace(self, cost=cost, machine=replace(self.machine, table=table))


def prices(
    recipes: Recipes,
    goal: Target | None,
    *,
    backend: str,
    batch: int | None,
    cache: Path | None,
    timer: Timer | None,
    say: Say,
) -> Prices:
    """What a target counts in, measured where it is latency.

    Args:
        recipes: Of the program.
        goal: None counts MACs.
        backend: Whose latency counts.
        batch: Examples a run, for latency; None leaves them free.
        cache: Folder of latency tables, None for the user's own.
        timer: Times engines in place of this machine; then nothing is kept.
        say: Told what is going on.

    Raises:
        BackendError: A latency target, and the backend is missing.
    """
    kind = "flops" if goal is None else goal.kind
    if kind == "latency":
        if timer is None:
            chosen = _available(backend)
            timer = EngineTimer(recipes.program, chosen, batch=batch)
            path = place_of(recipes, chosen, batch, folder=cache)
            table = read_table(path) or measured_table(recipes, timer, say=say)
            write_table(path, table)
        else:
            table = measured_table(recipes, timer, say=say)
        dense = timer(()).dense_ms
        cost = _latency(recipes, table, dense)
        return Prices(kind, cost, dense, goal, Machine(timer, table))
    cost = {"memory": _memory(recipes), "tokens": recipes.tokens, "flops": recipes.ratio}[kind]
    return Prices(kind, cost, cost(()), goal)


def _available(name: str) -> Backend:
    chosen = find_backend(name)
    reason = chosen.unavailable()
    if reason:
        raise BackendError(
            f"latency on {name!r} cannot be measured here", found=reason,
            fix="--target 'flops<=0.6', or --backend eager",
        )  # fmt: skip
    return chosen


def _latency(recipes: Recipes, table: LatencyTable, dense_ms: float) -> Cost:
    def cost(steps: Sequence[Step]) -> float:
        return dense_ms * table.share(recipes, steps)

    return cost


def _memory(recipes: Recipes) -> Cost:
    """Bytes of steps, each worked out once: that takes a run of a draft without numbers."""
    known: dict[str, float] = {}

    def cost(steps: Sequence[Step]) -> float:
        key = key_of(steps)
        if key not in known:
            known[key] = float(memory(recipes.program, steps))
        return known[key]

    return cost
