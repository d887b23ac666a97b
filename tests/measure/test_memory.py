"""Memory of this process."""

from __future__ import annotations

import torch

from prunepass.measure.memory import peak_bytes, resident_bytes


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before, room = peak_bytes(), 64 * 2**20
    assert before >= resident_bytes() > 0
    held = torch.ones(before - resident_bytes() + room, dtype=torch.uint8)
    risen = peak_bytes()
    assert risen >= before + room // 2
    del held
    # The system counts in batches of pages, a few of each thread's still to come.
    assert peak_bytes() >= risen - 2**20 > resident_bytes()
