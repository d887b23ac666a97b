"""Whether one engine is faster than another, and by how much: a ratio with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
    last turn without a next one is left out. A busy machine may hit one engine for several turns on
    end; then turns tell less than their number, and the interval is as much wider as it is for so
    many independent ones.

    Args:
        slow: Runs of one engine.
        fast: Runs of the other, taken in turns with them.
        share: Of such intervals that hold the true ratio.
        resamples: Draws, from a fixed generator.
    """
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    logs = torch.tensor([math.log(a / b) for a, b in pairs], dtype=torch.float64)
    turns = logs[: len(logs) // 2 * 2].reshape(-1, 2).mean(1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(turns), (resamples, len(turns)), generator=generator)
    middle = turns.quantile(0.5)
    medians = middle + _widening(turns) * (turns[drawn].quantile(0.5, dim=1) - middle)
    tail = (1 - share) / 2
    low, high = medians.exp().quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Gain(float(middle.exp()), low, high)


def _widening(values: Tensor) -> float:
    """By how much an interval is wider where each value [N] is like the one before.

    That is sqrt((1 + r) / (1 - r)) of the correlation r of neighbours, of their ranks, so that one
    value far off does not hide it; r comes out too small by (1 + 3 r) / N, which is added.
    """
    if len(values) < 3:
        return 1.0
    ranks = values.argsort().argsort().double()
    ranks = ranks - ranks.mean()
    found = float((ranks[1:] * ranks[:-1]).sum() / ranks.square().sum())
    r = min(max(found + (1 + 3 * found) / len(values), 0.0), 0.9)
    return math.sqrt((1 + r) / (1 - r))
