"""Whether a difference is told from noise: trials on made-up timings of known kind."""

from __future__ import annotations

import math

import pytest
import torch

from prunepass.measure.gain import Gain, gain
from prunepass.measure.timing import Timing

TRIALS = 200
RUNS = 30


def trial(seed: int, *, noise: float, order: float, faster: float, stretch: float = 0.0) -> Gain:
    """The gain of two engines that are equal, or one of them `faster`.

    Each run has noise of its own; a machine drifts and hits both alike; one run in twenty takes
    half as long again; who goes second is slower or quicker by `order`; one of the two is slowed
    down by `stretch` for 6 to 16 turns on end.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    drift = 0.02 * normal(RUNS).cumsum(0)
    logs = drift + noise * normal(2, RUNS)
    logs += math.log(1.5) * (torch.rand(2, RUNS, generator=g) < 0.05)
    second = torch.arange(RUNS) % 2
    logs += order * torch.stack([second, 1 - second])
    begin, length, who = (int(torch.randint(n, (), generator=g)) for n in (RUNS, 11, 2))
    logs[who, begin : begin + 6 + length] += stretch
    logs[1] -= math.log(faster)
    slow, fast = (Timing(tuple(row.tolist())) for row in logs.exp())
    return gain(slow, fast, resamples=400)


@pytest.mark.parametrize(
    ("noise", "order", "stretch"),
    [(0.02, 0.0, 0.0), (0.1, 0.0, 0.0), (0.02, 0.1, 0.0), (0.05, 0.0, 0.3)],
    ids=["quiet", "loud", "order", "stretch"],
)
def test_equal_engines_differ_in_no_more_than_5_of_100_trials(
    noise: float, order: float, stretch: float
) -> None:
    found = [
        trial(seed, noise=noise, order=order, faster=1.0, stretch=stretch) for seed in range(TRIALS)
    ]
    claimed = sum(g.verdict != "no difference" for g in found)
    assert claimed <= 0.05 * TRIALS
    # Not because of the smallest difference that is told: the intervals themselves hold 1.
    assert sum(g.low <= 1 <= g.high for g in found) >= 0.9 * TRIALS
    assert all(g.low <= g.ratio <= g.high for g in found)


def test_a_real_difference_is_found() -> None:
    found = [trial(seed, noise=0.03, order=0.05, faster=1.2) for seed in range(TRIALS // 2)]
    assert sum(g.verdict == "faster" for g in found) >= 0.95 * len(found)
    assert sum(g.low <= 1.2 <= g.high for g in found) >= 0.85 * len(found)
    back = [trial(seed, noise=0.03, order=0.05, faster=1 / 1.2) for seed in range(TRIALS // 2)]
    assert sum(g.verdict == "slower" for g in back) >= 0.95 * len(back)


def test_verdicts() -> None:
    assert Gain(1.5, 1.2, 1.8).verdict == "faster"
    assert Gain(0.5, 0.4, 0.6).verdict == "slower"
    assert Gain(1.1, 0.9, 1.3).verdict == "no difference"
    assert Gain(1.008, 1.006, 1.009).verdict == "no difference"  # below what can be told
    assert str(Gain(1.5, 1.2, 1.8)) == "1.50x (1.20 to 1.80)"


def test_the_same_timings_give_the_same_interval() -> None:
    one = Timing(tuple(1 + 0.1 * i for i in range(9)))
    other = Timing(tuple(1 + 0.05 * i for i in range(9)))
    assert gain(one, other) == gain(one, other)
    assert gain(one, one) == Gain(1.0, 1.0, 1.0)


def test_what_it_is_worth_to_go_first_cancels() -> None:
    # Each takes 2 s where it goes first and 3 s behind the other; they are equal.
    one, other = Timing((2.0, 3.0, 2.0, 3.0, 2.0)), Timing((3.0, 2.0, 3.0, 2.0, 3.0))
    found = gain(one, other)
    assert found.ratio == pytest.approx(1.0, rel=1e-12, abs=0)
    assert (found.low, found.high) == (found.ratio, found.ratio)
