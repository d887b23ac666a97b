from __future__ import annotations

import random as standard_random

import torch

from prunepass.rules.random import random
from tests.rules.example import numbers


def test_same_for_every_image_and_distinct_for_every_token() -> None:
    score = random(numbers(3, 50, 2), seed=4)
    assert score.shape == (3, 50)
    assert torch.equal(score[0], score[2])
    assert len(set(score[0].tolist())) == 50
    assert score.min() >= 0
    assert score.max() < 1


def test_follows_the_seed_and_nothing_else() -> None:
    hidden = numbers(1, 50, 2)
    state = standard_random.getstate()
    assert torch.equal(random(hidden, seed=1), random(hidden + 1, seed=1))
    assert not torch.equal(random(hidden, seed=1), random(hidden, seed=2))
    assert standard_random.getstate() == state  # the caller's generator is not touched
