"""Timing: who runs when, and what is made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunepass.measure.timing import Timing, interleaved, speedup


def test_engines_take_turns() -> None:
    calls: list[str] = []

    def engine(name: str, x: Tensor) -> tuple[Tensor, ...]:
        calls.append(name)
        return (x,)

    found = interleaved(
        {"dense": lambda x: engine("d", x), "compressed": lambda x: engine("c", x)},
        (torch.zeros(1),),
        runs=4,
        warm_up=2,
    )
    assert "".join(calls) == "dcdc" + "dccd" * 2
    assert list(found) == ["dense", "compressed"]
    assert [len(timing.seconds) for timing in found.values()] == [4, 4]
    assert all(second > 0 for timing in found.values() for second in timing.seconds)


def test_medians_and_quartiles_by_hand() -> None:
    timing = Timing((0.004, 0.001, 0.003, 0.002, 0.005))
    assert timing.median_ms == pytest.approx(3.0, rel=1e-12, abs=0.0)
    assert timing.quartiles_ms == pytest.approx((1.5, 4.5), rel=1e-12, abs=0.0)
    assert timing.p99_ms == pytest.approx(4.96, rel=1e-12, abs=0.0)  # 4 + 0.96 of the last gap
    told = timing.to_dict()
    assert told["runs"] == 5
    assert told["median_ms"] == timing.median_ms


def test_speedup_is_the_median_of_paired_ratios() -> None:
    slow, fast = Timing((2.0, 6.0, 40.0)), Timing((1.0, 2.0, 1.0))
    assert speedup(slow, fast) == 3.0
    assert speedup(slow, slow) == 1.0
    with pytest.raises(ValueError, match="shorter"):
        speedup(slow, Timing((1.0,)))
