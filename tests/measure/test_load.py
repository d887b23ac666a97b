"""Several callers at once."""

from __future__ import annotations

import threading
import time

import pytest

from prunepass.measure.load import under_load


def test_engines_that_wait_for_each_other_do_no_more_for_many() -> None:
    lock = threading.Lock()

    def alone() -> tuple[()]:
        with lock:
            time.sleep(0.02)
        return ()

    def together() -> tuple[()]:
        time.sleep(0.02)
        return ()

    found = under_load({"alone": alone, "together": together}, (), callers=6, seconds=0.2, rounds=2)
    assert found["alone"].callers == 6
    assert len(found["alone"].per_second) == 2
    assert found["together"].median_per_second > 2 * found["alone"].median_per_second
    # Whoever is served one after the other waits for all the others, sooner or later.
    assert found["alone"].waiting.p99_ms > 2 * found["together"].waiting.median_ms


def test_what_fails_in_a_caller_is_told() -> None:
    def broken() -> tuple[()]:
        raise RuntimeError("out of tea")

    with pytest.raises(RuntimeError, match="out of tea"):
        under_load({"broken": broken}, (), callers=2, seconds=0.01, rounds=1)
