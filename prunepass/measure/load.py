"""Engines under load: how many runs a second when several callers ask at once."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from prunepass.measure.timing import Run, Timing

CALLERS = (1, 8, 32)


@dataclass(frozen=True)
class Load:
    """What an engine did for several callers at once.

    Attributes:
        callers: Threads that call it, each as soon as its last call is answered.
        per_second: Runs a second of each round.
        waiting: How long the callers waited for each answer.
    """

    callers: int
    per_second: tuple[float, ...]
    waiting: Timing

    @property
    def median_per_second(self) -> float:
        """Runs a second, the median of the rounds."""
        return statistics.median(self.per_second)


def under_load(
    engines: Mapping[str, Run],
    inputs: Sequence[Tensor],
    *,
    callers: int,
    seconds: float = 1.0,
    rounds: int = 5,
) -> dict[str, Load]:
    """What each engine does for so many callers; engines take turns, round by round.

    Args:
        engines: Name -> engine; it must take calls from several threads.
        inputs: One batch.
        callers: Threads that call at once.
        seconds: Of a round of one engine.
        rounds: Of each engine, after one that does not count.
    """
    per_second: dict[str, list[float]] = {name: [] for name in engines}
    waited: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for turn in range(rounds + 1):
        for name in names if turn % 2 == 0 else reversed(names):
            found, taken = _round(engines[name], inputs, callers, seconds)
            if turn:
                per_second[name].append(len(found) / taken)
                waited[name] += found
    return {n: Load(callers, tuple(per_second[n]), Timing(tuple(waited[n]))) for n in engines}


def _round(
    engine: Run, inputs: Sequence[Tensor], callers: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds of every call, and how long all of it took, the last answers with it."""
    found: list[list[float]] = [[] for _ in range(callers)]
    failed: list[BaseException] = []
    ready = threading.Barrier(callers + 1)

    def call(own: list[float]) -> None:
        ready.wait()
        end = time.perf_counter() + seconds
        try:
            while not own or time.perf_counter() < end:
                start = time.perf_counter()
                engine(*inputs)
                own.append(time.perf_counter() - start)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(own,), daemon=True) for own in found]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [s for own in found for s in own], time.perf_counter() - start
