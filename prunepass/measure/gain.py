"""Whether one engine is faster than another, and by how much: a ratio with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prunepass.measure.timing import Timing

RUNS = 30
"""Measured runs from which on an interval may be trusted."""
SMALL = 0.01
"""Differences below this are not told apart: the same engine loaded twice differs as much, by where
its weights happen to lie in memory."""


@dataclass(frozen=True)
class Gain:
    """How many times faster an engine is than another.

    Attributes:
        ratio: Median of the paired ratios, slow over fast; each of two turns that follow each
            other, their geometric mean.
        low: Lower end of its interval.
        high: Upper end.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`faster`, `slower` or `no difference`, the last one also where it is below 1 %."""
        if self.low > 1 + SMALL:
            return "faster"
        return "slower" if self.high < 1 - SMALL else "no difference"

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f} to {self.high:.2f})"


def gain(slow: Timing, fast: Timing, *, share: float = 0.95, resamples: int = 2000) -> Gain:
    """The gain of runs taken in turns, by bootstrap.

    Who goes first alternates from turn to turn, and that may be worth more than the difference that
    is sought: of two turns that follow each other the geometric mean is taken, where it cancels. A
    last turn without a next one is left out.

    Args:
        slow: Runs of one engine.
        fast: Runs of the other, taken in turns with them.
        share: Of such intervals that hold the true ratio.
        resamples: Draws, from a fixed generator.
    """
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    logs = torch.tensor([math.log(a / b) for a, b in pairs], dtype=torch.float64)
    ratios = logs[: len(logs) // 2 * 2].reshape(-1, 2).mean(1).exp()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ratios), (resamples, len(ratios)), generator=generator)
    medians = ratios[drawn].quantile(0.5, dim=1)
    tail = (1 - share) / 2
    low, high = medians.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Gain(float(ratios.quantile(0.5)), low, high)
