"""Choosing the next token."""

from __future__ import annotations

import pytest
import torch

from prunepass.errors import UsageError
from prunepass.vlm import Sampling

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0]])


def drawn(sampling: Sampling, times: int = 2000) -> torch.Tensor:
    """How often each token was drawn, as a share."""
    generator = sampling.generator()
    picks = sampling.pick(LOGITS.expand(times, 4), generator)
    return torch.bincount(picks, minlength=4) / times


def test_greedy_takes_the_likeliest() -> None:
    assert drawn(Sampling()).tolist() == [0, 1, 0, 0]


def test_draws_follow_the_probabilities() -> None:
    found = drawn(Sampling(temperature=2.0), times=20_000)
    torch.testing.assert_close(found, (LOGITS[0] / 2.0).softmax(0), atol=0.015, rtol=0)


def test_few_likeliest() -> None:
    assert (drawn(Sampling(temperature=1.0, top_k=2)) > 0).tolist() == [False, True, True, False]


def test_the_token_that_crosses_the_share_still_counts() -> None:
    # 0.64, 0.24, 0.09, 0.03
    assert (drawn(Sampling(temperature=1.0, top_p=0.6)) > 0).sum() == 1
    assert (drawn(Sampling(temperature=1.0, top_p=0.7)) > 0).sum() == 2
    assert (drawn(Sampling(temperature=1.0, top_p=1.0)) > 0).sum() == 4


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_what_is_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Sampling(**wrong)  # type: ignore[arg-type]
