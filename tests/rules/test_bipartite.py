from __future__ import annotations

import pytest
import torch

from prunepass.rules.bipartite import bipartite, most_merges
from tests.rules.example import numbers, shuffled


def test_four_tokens_by_hand() -> None:
    features = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.1, 1.0]]])
    # A = {0, 2}, B = {1, 3}: token 2 is most like 3, token 0 most like 1 (and less so).
    one = bipartite(features, keep=3, prefix=0)
    assert [part.tolist() for part in one[:3]] == [[[0, 1, 3]], [[2]], [[3]]]
    two = bipartite(features, keep=2, prefix=0)
    assert [part.tolist() for part in two[:3]] == [[[1, 3]], [[2, 0]], [[3, 1]]]
    weighted = bipartite(features, keep=3, prefix=0, weight=torch.tensor([[1e-9, 1.0, 1.0, 1.0]]))
    assert weighted.dropped.tolist() == [[0]]


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
@pytest.mark.parametrize("tokens", [4, 5, 9, 10])
def test_as_many_as_can_go_and_no_more(tokens: int, prefix: int) -> None:
    features = numbers(3, tokens, 4)
    even = [i for i in range(prefix, tokens) if i % 2 == 0]
    odd = [i for i in range(prefix, tokens) if i % 2 == 1]
    most = len(even) if odd else 0
    assert most_merges(tokens=tokens, prefix=prefix) == most
    selection = bipartite(features, keep=tokens - most, prefix=prefix)
    for image in range(3):
        if most:
            assert sorted(selection.dropped[image].tolist()) == even
            joined = selection.target[image].tolist()
            assert set(joined) <= set(odd)
    if tokens - most - 1 > prefix:
        with pytest.raises(ValueError, match=f"at most {most} go in one step"):
            bipartite(features, keep=tokens - most - 1, prefix=prefix)


def test_each_takes_its_best_and_the_cheapest_merge() -> None:
    features, weight = numbers(2, 11, 4), numbers(2, 11, seed=1).abs()
    selection = bipartite(features, keep=8, prefix=1, weight=weight)
    rows = features / features.norm(dim=-1, keepdim=True)
    for image in range(2):
        alike = rows[image] @ rows[image].T
        costs = {}
        best = {}
        for a in range(2, 11, 2):
            best[a] = max(range(1, 11, 2), key=lambda b, a=a: float(alike[a, b]))
            costs[a] = float((1 - alike[a, best[a]]) * weight[image, a])
        cheapest = sorted(costs, key=lambda a: costs[a])[:3]
        assert selection.dropped[image].tolist() == cheapest
        joined = selection.target[image].tolist()
        assert joined == [best[a] for a in cheapest]


def test_permuting_within_the_halves_permutes_the_selection() -> None:
    features, weight = numbers(2, 11, 4), numbers(2, 11, seed=1).abs()
    order = list(range(11))
    order[2::2] = shuffled(order[2::2], seed=1)
    order[1::2] = shuffled(order[1::2], seed=2)
    here = bipartite(features, keep=8, prefix=1, weight=weight)
    there = bipartite(features[:, order], keep=8, prefix=1, weight=weight[:, order])
    name = torch.tensor(order)
    assert torch.equal(name[there.dropped], here.dropped)
    assert torch.equal(name[there.target], here.target)


def test_prefix_tokens_do_not_take_part() -> None:
    features = torch.ones(1, 8, 3)  # everything is as alike as can be
    selection = bipartite(features, keep=6, prefix=3)
    assert selection.kept[0, :3].tolist() == [0, 1, 2]
    assert selection.target.min() >= 3


def test_one_candidate_cannot_merge() -> None:
    features = numbers(2, 3, 4)
    assert bipartite(features, keep=3, prefix=2).kept.tolist() == [[0, 1, 2]] * 2
    assert most_merges(tokens=3, prefix=2) == 0


def test_ties_and_zero_rows_still_split_the_tokens() -> None:
    for features in (torch.ones(2, 9, 3), torch.zeros(2, 9, 3)):
        selection = bipartite(features, keep=6, prefix=1)
        for image in range(2):
            kept, dropped, target = (part[image].tolist() for part in selection[:3])
            assert sorted(kept + dropped) == list(range(9))
            assert kept == sorted(kept)
            assert all(token in kept and token >= 1 for token in target)
