"""Stages are told as they begin, and timed."""

from __future__ import annotations

import time

import pytest

from prunepass.stages import Clock


def test_stages_are_told_and_timed() -> None:
    told: list[str] = []
    clock = Clock(told.append)
    with clock("one"):
        assert told == ["one"]
        time.sleep(0.01)
    with clock("two"):
        pass
    assert told == list(clock.seconds) == ["one", "two"]
    assert 0.01 <= clock.seconds["one"] < 10
    assert clock.seconds["two"] < clock.seconds["one"]


def test_a_stage_that_fails_has_no_time() -> None:
    clock = Clock(None)
    with pytest.raises(ValueError, match="x"), clock("one"):
        raise ValueError("x")
    assert clock.seconds == {}
