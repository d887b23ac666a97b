from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunepass.rules.select import (
    complement,
    keep_everything,
    nearest_kept,
    select_by_score,
    sort_ascending,
    top_tokens,
)
from tests.rules.example import numbers


def test_four_tokens_by_hand() -> None:
    score = torch.tensor([[0.0, 5.0, 1.0, 3.0]])
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [1.0, 3.0]]])
    selection = select_by_score(score, features, keep=3, prefix=1)
    assert selection.kept.tolist() == [[0, 1, 3]]  # the class token's 0 is not ranked
    assert selection.dropped.tolist() == [[2]]
    assert selection.target.tolist() == [[3]]


def test_top_tokens_keeps_the_highest_and_ascends() -> None:
    score = numbers(3, 11)
    kept, dropped = top_tokens(score, keep=6, prefix=2)
    for image in range(3):
        assert kept[image, :2].tolist() == [0, 1]
        best = (score[image, 2:].sort(descending=True).indices[:4] + 2).sort().values
        assert kept[image, 2:].tolist() == best.tolist()
        assert sorted(kept[image].tolist() + dropped[image].tolist()) == list(range(11))


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_keeping_all_is_the_identity(prefix: int) -> None:
    selection = select_by_score(numbers(2, 5), numbers(2, 5, 3), keep=5, prefix=prefix)
    assert selection.kept.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert selection.dropped.shape == selection.target.shape == (2, 0)
    assert all(part.dtype == torch.int64 for part in selection[:3])


def test_one_token() -> None:
    assert keep_everything(numbers(2, 1)).kept.tolist() == [[0], [0]]
    assert top_tokens(numbers(2, 1), keep=1, prefix=0)[0].tolist() == [[0], [0]]


def test_one_candidate_stays() -> None:
    selection = select_by_score(
        torch.tensor([[9.0, 1.0, 2.0]]), torch.ones(1, 3, 2), keep=2, prefix=1
    )
    assert selection.kept.tolist() == [[0, 2]]
    assert selection.target.tolist() == [[2]]


@pytest.mark.parametrize(("keep", "prefix"), [(0, 0), (1, 1), (2, 3), (6, 1), (-1, 0), (3, -1)])
def test_keep_out_of_range_says_what_is_possible(keep: int, prefix: int) -> None:
    with pytest.raises(ValueError, match=r"found: keep=.*\n  try: .*\.\.5"):
        top_tokens(numbers(1, 5), keep=keep, prefix=prefix)


def test_ties_still_give_a_valid_selection() -> None:
    kept, dropped = top_tokens(torch.ones(2, 9), keep=4, prefix=1)
    for image in range(2):
        assert kept[image].diff().min() > 0
        assert sorted(kept[image].tolist() + dropped[image].tolist()) == list(range(9))


def test_target_is_never_a_prefix_token() -> None:
    features = torch.ones(1, 6, 3)
    selection = select_by_score(numbers(1, 6), features, keep=4, prefix=2)
    assert selection.target.min() >= 2


def test_target_is_the_most_alike_kept_token() -> None:
    features = numbers(2, 8, 5)
    selection = select_by_score(numbers(2, 8, seed=1), features, keep=5, prefix=1)
    rows = features / features.norm(dim=-1, keepdim=True)
    for image in range(2):
        for dropped, target in zip(selection.dropped[image], selection.target[image], strict=True):
            alike = rows[image, selection.kept[image, 1:]] @ rows[image, dropped]
            assert int(target) == int(selection.kept[image, int(alike.argmax()) + 1])
    assert torch.equal(
        selection.target,
        selection.kept.gather(
            1, nearest_kept(features, kept=selection.kept, dropped=selection.dropped, prefix=1)
        ),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)))))
def test_complement_against_lists(case: tuple[int, list[int]]) -> None:
    tokens, order = case
    gone = order[: tokens // 2]
    stay = sorted(set(range(tokens)) - set(gone))
    dropped = torch.tensor([gone], dtype=torch.int64)
    assert complement(dropped, tokens=tokens).tolist() == [stay]


def test_sort_ascending_is_exact_for_large_indices() -> None:
    indices = torch.tensor([[2**24 - 1, 3, 2**24 - 2, 0]])
    assert sort_ascending(indices).tolist() == [[0, 3, 2**24 - 2, 2**24 - 1]]


def test_inputs_are_left_alone() -> None:
    score, features = numbers(2, 7), numbers(2, 7, 3)
    before = score.clone(), features.clone()
    select_by_score(score, features, keep=4, prefix=1)
    assert torch.equal(score, before[0])
    assert torch.equal(features, before[1])
