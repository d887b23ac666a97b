"""Choosing image tokens and shortening the sequence around them."""

from __future__ import annotations

import pytest
import torch

from prunepass.errors import PlanError
from prunepass.rules.image_table import IMAGE_RULES, choose_image_tokens, image_rule
from prunepass.rules.image_tokens import (
    best_of_each_image,
    kept_number,
    text_raters,
    without_other_image_tokens,
)


def test_the_best_of_each_image_stay_in_order() -> None:
    score = torch.tensor([[[0.1, 0.9, 0.2, 0.8], [4.0, 3.0, 2.0, 1.0]]])
    assert best_of_each_image(score, 2).tolist() == [[[1, 3], [0, 1]]]
    assert best_of_each_image(score, 4).tolist() == [[[0, 1, 2, 3]] * 2]


@pytest.mark.parametrize(
    ("tokens", "share", "expected"),
    [
        (576, (7, 8), 504),
        (576, (5, 8), 360),
        (576, (1, 8), 72),
        (100, (29, 100), 29),
        (3, (1, 9), 1),
    ],
)
def test_shares_are_rounded_down(tokens: int, share: tuple[int, int], expected: int) -> None:
    assert kept_number(tokens, share) == expected


def test_a_sequence_of_seven_by_hand() -> None:
    hidden = torch.zeros(2, 7, 3)
    image = torch.tensor([[[1, 2, 3]], [[2, 3, 4]]])
    chosen = torch.tensor([[[0, 2]], [[1, 2]]])
    asking = torch.tensor([[4, 6], [5, 6]])
    kept, new_image, new_asking = without_other_image_tokens(hidden, image, chosen, asking)
    assert kept.tolist() == [[0, 1, 3, 4, 5, 6], [0, 1, 3, 4, 5, 6]]
    assert new_image.tolist() == [[[1, 2]], [[2, 3]]]
    assert new_asking.tolist() == [[3, 5], [4, 5]]


def test_raters_are_the_words_that_the_image_is_like() -> None:
    hidden = torch.tensor([[[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]])
    votes = text_raters(
        hidden, torch.tensor([[[0, 1]]]), torch.tensor([[2, 3, 4]]), torch.tensor([[1.0, 1.0, 0.0]])
    )
    assert votes.tolist() == [[1.0, 0.0, 0.0]]


def test_words_that_are_all_alike_all_rate() -> None:
    votes = text_raters(
        torch.ones(1, 6, 2), torch.tensor([[[0, 1]]]), torch.tensor([[2, 3, 4]]), torch.ones(1, 3)
    )
    assert votes.tolist() == [[1.0, 1.0, 1.0]]


def test_random_is_the_same_for_all_prompts_and_has_no_ties() -> None:
    row = IMAGE_RULES["random-image-tokens"]
    one = row.function(image=torch.zeros(2, 576, 4), seed=0)
    other = row.function(image=torch.ones(2, 576, 9), seed=1)
    assert isinstance(one, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    assert torch.equal(one[0], one[1])
    assert len(set(one[0].tolist())) == 576
    assert not torch.equal(one, other)
    # Not by place: halves, and even and odd tokens, are chosen alike.
    chosen = best_of_each_image(one[:1, None], 192)[0, 0]
    assert 70 < int((chosen < 288).sum()) < 122
    assert 70 < int((chosen % 2 == 0).sum()) < 122


def test_a_share_is_of_the_number_that_came() -> None:
    image, original = torch.zeros(1, 1, 8, dtype=torch.int64), torch.zeros(1, 1, 16)
    score = torch.arange(8.0)[None]
    chosen = choose_image_tokens(
        "transition", {"transition": score}, image, original, keep=(1, 4), options={}
    )
    assert chosen.tolist() == [[[4, 5, 6, 7]]]


def test_an_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match="one of transition,"):
        image_rule("transitions")
