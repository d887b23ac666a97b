"""Importance by suppressing random halves."""

from __future__ import annotations

import pytest
import torch

from prunepass.rules.suppression import suppressed_half, suppression_effects


def test_half_are_suppressed_and_a_seed_gives_them_again() -> None:
    for count in (1, 2, 7, 24):
        chosen = suppressed_half(count, seed=4)
        assert int(chosen.sum()) == max(1, count // 2)
        assert torch.equal(chosen, suppressed_half(count, seed=4))
    halves = {tuple(suppressed_half(8, seed=s).tolist()) for s in range(20)}
    assert len(halves) > 10


def test_effects_that_add_up_are_found() -> None:
    told = torch.tensor([0.0, 0.5, 0.1, 2.0, 0.0, 0.3, 0.05, 1.0], dtype=torch.float64)
    products = torch.zeros(8, 8, dtype=torch.float64)
    answers = torch.zeros(8, dtype=torch.float64)
    for seed in range(64):
        who = suppressed_half(8, seed=seed).double()
        products += who[:, None] * who[None, :]
        answers += who * float(who @ told)
    found = suppression_effects(products, answers)
    assert found.tolist() == pytest.approx(told.tolist(), abs=0.02)
