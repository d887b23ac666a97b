from __future__ import annotations

import torch

from prunepass.rules.key_norm import key_norm
from tests.rules.example import numbers


def test_by_hand_short_keys_score_higher() -> None:
    key = torch.tensor([[[[3.0, 4.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    assert key_norm(key).tolist() == [[-3.0, -1.0]]
    assert key_norm(key, largest=True).tolist() == [[3.0, 1.0]]


def test_half_precision_is_finite() -> None:
    key = torch.full((1, 2, 3, 64), 6e4, dtype=torch.float16)
    assert key_norm(key).isfinite().all()


def test_float64_stays() -> None:
    key = numbers(2, 3, 5, 4)
    expected = -key.pow(2).sum(-1).sqrt().mean(1)
    torch.testing.assert_close(key_norm(key), expected, rtol=1e-14, atol=0)
