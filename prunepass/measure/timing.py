"""Timing engines against each other: interleaved, warmed up, medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., tuple[Tensor, ...]]

REST = 0.1
"""Seconds. Threads of ONNX Runtime and OpenMP spin for a while after a run, waiting for the next;
without a pause those of one engine take the cores from the other. On two cores that doubled every
second run at batch 1."""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one engine, in the order they were taken."""

    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median in milliseconds."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        """First and third quartile in milliseconds."""
        first, _, third = statistics.quantiles(self.seconds, n=4)
        return 1e3 * first, 1e3 * third

    @property
    def p99_ms(self) -> float:
        """What 99 of 100 runs stay below, in milliseconds; of 30 runs next to the longest."""
        return 1e3 * statistics.quantiles(self.seconds, n=100, method="inclusive")[98]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, milliseconds."""
        return {
            "median_ms": self.median_ms, "quartiles_ms": self.quartiles_ms, "p99_ms": self.p99_ms,
            "runs": len(self.seconds),
        }  # fmt: skip


def interleaved(
    engines: Mapping[str, Run],
    inputs: Sequence[Tensor],
    *,
    runs: int,
    warm_up: int = 5,
    rest: float = REST,
) -> dict[str, Timing]:
    """Timings of engines that take turns on the same inputs, so that drift hits all alike.

    Args:
        engines: Name -> engine.
        inputs: One batch.
        runs: Measured runs of each.
        warm_up: Runs of each before that are not counted.
        rest: Seconds of pause before each run.
    """
    for _ in range(warm_up):
        for engine in engines.values():
            engine(*inputs)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for turn in range(runs):
        # Who goes first alternates: the second finds caches as the first left them.
        for name in names if turn % 2 == 0 else reversed(names):
            time.sleep(rest)
            start = time.perf_counter()
            finish(engines[name](*inputs))
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def finish(outputs: object) -> None:
    """Waits until outputs of an engine are there, which on a GPU are still being computed."""
    if isinstance(outputs, tuple) and any(isinstance(y, Tensor) and y.is_cuda for y in outputs):
        torch.cuda.synchronize()


def speedup(slow: Timing, fast: Timing) -> float:
    """How much faster, as the median of the paired ratios."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
