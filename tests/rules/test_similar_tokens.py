from __future__ import annotations

import pytest
import torch

from prunepass.rules.similar_tokens import PARTITIONS, most_similar, similar_tokens
from prunepass.rules.similarity import METRICS
from tests.rules.example import numbers


def upper_half(importance: torch.Tensor, prefix: int) -> set[int]:
    order = importance[prefix:].argsort(descending=True) + prefix
    return set(order[: len(order) - len(order) // 2].tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_zt11_the_lower_copy_of_a_duplicate_goes(metric: str) -> None:
    importance = torch.tensor([[9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0]], dtype=torch.float64)
    features = numbers(1, 7, 6)
    features = features / features.norm(dim=-1, keepdim=True)  # so that dot ranks the copy first
    features[0, 3] = features[0, 4]  # 4 is in the upper half, 3 in the lower
    gone, partner = similar_tokens(importance, features, similar=1, prefix=1, metric=metric)
    assert gone.tolist() == [[3]]
    assert partner.tolist() == [[4]]


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_zt12_the_upper_half_and_prefix_tokens_stay(prefix: int) -> None:
    importance, features = numbers(3, 12), numbers(3, 12, 4, seed=1)
    count = (12 - prefix) // 2
    gone, partner = similar_tokens(importance, features, similar=count, prefix=prefix)
    for image in range(3):
        upper = upper_half(importance[image], prefix)
        assert not upper & set(gone[image].tolist())
        assert set(partner[image].tolist()) <= upper
        assert gone[image].min() >= prefix
        assert len(set(gone[image].tolist())) == count


def test_zt14_positive_scales_of_rows_change_nothing() -> None:
    importance, features = numbers(3, 12), numbers(3, 12, 4, seed=1)
    scaled = features * (numbers(3, 12, 1, seed=2).abs() + 0.1)
    here = similar_tokens(importance, features, similar=3, prefix=1)
    there = similar_tokens(importance, scaled, similar=3, prefix=1)
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])


def test_four_tokens_by_hand() -> None:
    importance = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.1, 1.0]]])
    gone, partner = similar_tokens(importance, features, similar=1, prefix=0)
    assert (gone.tolist(), partner.tolist()) == ([[3]], [[1]])
    gone, partner = similar_tokens(importance, features, similar=1, prefix=0, partition="seq-i")
    assert (gone.tolist(), partner.tolist()) == ([[1]], [[3]])
    gone, partner = similar_tokens(importance, features, similar=1, prefix=0, partition="alternate")
    assert (gone.tolist(), partner.tolist()) == ([[3]], [[2]])  # {1, 3} against {0, 2}


def test_full_keeps_one_of_two_equal_tokens() -> None:
    features = numbers(1, 6, 4)
    features[0, 2] = features[0, 5]
    importance = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    gone, partner = similar_tokens(importance, features, similar=1, prefix=0, partition="full")
    assert (gone.tolist(), partner.tolist()) == ([[2]], [[5]])
    gone, _ = similar_tokens(importance, features, similar=5, prefix=0, partition="full")
    assert 5 not in gone.tolist()[0]  # the most important always stays


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("candidates", [1, 2, 5, 6])
def test_as_many_as_can_go_and_no_more(partition: str, candidates: int) -> None:
    importance, features = numbers(2, candidates + 1), numbers(2, candidates + 1, 3, seed=1)
    most = most_similar(candidates, partition=partition)
    gone, _ = similar_tokens(importance, features, similar=most, prefix=1, partition=partition)
    assert gone.shape == (2, most)
    assert all(len(set(image)) == most for image in gone.tolist())
    with pytest.raises(ValueError, match=f"0..{most}"):
        similar_tokens(importance, features, similar=most + 1, prefix=1, partition=partition)


def test_random_partition_follows_its_seed() -> None:
    importance, features = numbers(2, 20), numbers(2, 20, 3, seed=1)

    def run(seed: int) -> list[list[int]]:
        gone, _ = similar_tokens(
            importance, features, similar=9, prefix=1, partition="random", seed=seed
        )
        return gone.sort().values.tolist()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_unknown_partition_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="seq-u, seq-i"):
        similar_tokens(numbers(1, 4), numbers(1, 4, 2), similar=1, prefix=0, partition="half")
