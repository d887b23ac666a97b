"""Whether one engine is faster than another, and by how much: a ratio with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunepass.measure.timing import Timing, speedup

RUNS = 30
"""Measured runs from which on an interval may be trusted."""
SMALL = 0.01
"""Differences below this are not told apart: the same engine loaded twice differs as much, by where
its weights happen to lie in memory."""


@dataclass(frozen=True)
class Gain:
    """How many times faster an engine is than another.

    Attributes:
        ratio: Median of the paired ratios, slow over fast.
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

    Turns are drawn two by two with replacement, a turn together with the next one: who goes first
    alternates, and drawn alone one order would come up more often than the other.

    Args:
        slow: Runs of one engine.
        fast: Runs of the other, taken in turns with them.
        share: Of such intervals that hold the true ratio.
        resamples: Draws, from a fixed generator.
    """
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    ratios = torch.tensor([a / b for a, b in pairs], dtype=torch.float64)
    blocks = ratios[: len(ratios) // 2 * 2].reshape(-1, 2)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(blocks), (resamples, len(blocks)), generator=generator)
    medians = blocks[drawn].flatten(1).quantile(0.5, dim=1)
    tail = (1 - share) / 2
    low, high = medians.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    ratio = speedup(slow, fast)
    return Gain(ratio, min(low, ratio), max(high, ratio))
