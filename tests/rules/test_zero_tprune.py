from __future__ import annotations

import pytest
import torch

from prunepass.rules.selection import Selection
from prunepass.rules.similar_tokens import PARTITIONS
from prunepass.rules.zero_tprune import ORDERS, zero_tprune
from tests.reference import zero_tprune_numpy
from tests.rules.example import attention, numbers


def joins(selection: Selection, image: int) -> dict[int, int]:
    kept, dropped, target = (part[image].tolist() for part in selection[:3])
    assert set(target) <= set(kept)
    return dict(zip(dropped, target, strict=True))


@pytest.mark.parametrize(
    ("tokens", "keep", "similar", "iterations", "prefix"),
    [
        (12, 7, 2, 5, 1),
        (12, 7, 0, 5, 1),  # no S-stage
        (12, 8, 4, 1, 1),  # no I-stage
        (13, 5, 6, 3, 0),
        (13, 5, 3, 30, 2),
        (6, 2, 1, 1, 1),  # one candidate left
    ],
)
@pytest.mark.parametrize("variance_range", [(0.01, 0.7), (0.0, 0.15), None])
def test_against_loops(
    tokens: int,
    keep: int,
    similar: int,
    iterations: int,
    prefix: int,
    variance_range: tuple[float, float] | None,
) -> None:
    a, key = attention(3, 4, tokens, seed=tokens), numbers(3, 4, tokens, 5, seed=keep)
    selection = zero_tprune(
        a,
        key,
        keep=keep,
        prefix=prefix,
        similar=similar,
        iterations=iterations,
        variance_range=variance_range,
    )
    for image in range(3):
        kept, expected = zero_tprune_numpy.zero_tprune(
            a[image].numpy(),
            key[image].numpy(),
            keep=keep,
            similar=similar,
            iterations=iterations,
            prefix=prefix,
            variance_range=variance_range,
        )
        assert selection.kept[image].tolist() == kept
        assert joins(selection, image) == expected


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("similar", [0, None])
def test_zt13_keeping_all_is_the_identity(order: str, similar: int | None) -> None:
    selection = zero_tprune(
        attention(2, 3, 9),
        numbers(2, 3, 9, 4),
        keep=9,
        prefix=1,
        iterations=3,
        similar=similar,
        order=order,
    )
    assert selection.kept.tolist() == [list(range(9))] * 2
    assert selection.dropped.shape == selection.target.shape == (2, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("similar", [0, 1, 4])
def test_every_ablation_splits_the_tokens(order: str, partition: str, similar: int) -> None:
    selection = zero_tprune(
        attention(3, 2, 14),
        numbers(3, 2, 14, 4),
        keep=7,
        prefix=2,
        iterations=2,
        similar=similar,
        partition=partition,
        order=order,
    )
    for image in range(3):
        kept, dropped, target = (part[image].tolist() for part in selection[:3])
        assert kept == sorted(set(kept))
        assert kept[:2] == [0, 1]
        assert sorted(kept + dropped) == list(range(14))
        assert all(token in kept and token >= 2 for token in target)


def test_order_i_is_similar_zero() -> None:
    a, key = attention(2, 3, 9), numbers(2, 3, 9, 4)
    only = zero_tprune(a, key, keep=5, prefix=1, iterations=3, similar=2, order="i")
    none = zero_tprune(a, key, keep=5, prefix=1, iterations=3, similar=0)
    assert all(torch.equal(*pair) for pair in zip(only[:3], none[:3], strict=True))


def test_a_chain_of_equal_tokens_ends_at_the_survivor_under_full() -> None:
    a = torch.zeros(1, 1, 6, 6, dtype=torch.float64) + torch.arange(6).double()
    a = a.softmax(-1)  # token 5 is the most important, 0 the least
    key = numbers(1, 1, 6, 3)
    key[:, :, :5] = key[:, :, 5:]  # all alike, so partners may themselves be gone
    selection = zero_tprune(a, key, keep=2, prefix=1, iterations=1, similar=4, partition="full")
    assert selection.kept.tolist() == [[0, 5]]
    assert selection.target.tolist() == [[5, 5, 5, 5]]


def test_keys_of_all_heads_or_their_mean() -> None:
    a = attention(1, 2, 9)
    key = numbers(1, 2, 9, 4)
    key[:, 1] = -key[:, 0] + 0.01 * numbers(1, 9, 4, seed=5)  # the mean over heads is noise
    joined = zero_tprune(a, key, keep=6, prefix=1, iterations=1, similar=3)
    mean = zero_tprune(a, key, keep=6, prefix=1, iterations=1, similar=3, mean_heads=True)
    one_head = zero_tprune(a, key[:, :1], keep=6, prefix=1, iterations=1, similar=3)
    assert joined.kept.tolist() == one_head.kept.tolist()
    assert joins(mean, 0) != joins(joined, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"similar": 5},  # more than T - keep
        {"similar": 5, "keep": 2},  # more than half of the candidates
        {"similar": 3, "keep": 3, "order": "i-s"},  # more than half of what the I-stage leaves
        {"similar": -1},
        {"order": "s-i"},
        {"keep": 1},
        {"keep": 11},
    ],
)
def test_what_cannot_be_asked(options: dict[str, object]) -> None:
    arguments: dict[str, object] = {"keep": 6, "prefix": 1, "iterations": 1, **options}
    with pytest.raises(ValueError, match=r"found: .*\n  try: "):
        zero_tprune(attention(1, 2, 10), numbers(1, 2, 10, 4), **arguments)


def test_the_most_that_i_s_can_take() -> None:
    selection = zero_tprune(
        attention(1, 2, 10), numbers(1, 2, 10, 4), keep=3, prefix=1, iterations=1, similar=2,
        order="i-s",
    )  # fmt: skip
    assert selection.kept.shape == (1, 3)
