from __future__ import annotations

import torch

from prunepass.rules.page_rank import page_rank
from prunepass.rules.received_attention import received_attention
from tests.rules.example import attention


def test_by_hand() -> None:
    a = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5]]]])
    assert received_attention(a).tolist() == [[0.5, 0.5]]


def test_sums_to_one_and_is_one_round_of_page_rank() -> None:
    a = attention(2, 3, 9)
    score = received_attention(a)
    torch.testing.assert_close(score.sum(1), torch.ones(2).double(), rtol=1e-14, atol=0)
    one_round = page_rank(a, iterations=1, prefix_boost=False).mean(1)
    torch.testing.assert_close(score, one_round, rtol=1e-13, atol=0)
