from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from prunepass.rules.token_gaps import (
    among,
    missing,
    note_widths,
    passed,
    ranks,
    slowed,
    spread,
    step_width,
    token_at,
    way,
)

ORDER = (2, 5, 0, 3, 1, 4)
KEPT = torch.tensor([[0, 3, 4], [1, 2, 5]])


def test_ranks_are_ascending_places() -> None:
    assert torch.equal(ranks(KEPT, None), KEPT)
    # Tokens 0, 3 and 4 stand at places 2, 3 and 5; tokens 1, 2 and 5 at 4, 0 and 1.
    assert ranks(KEPT, ORDER).tolist() == [[2, 3, 5], [0, 1, 4]]


def test_missing_counts_what_is_left_out_between() -> None:
    assert missing(KEPT, None).tolist() == [[0, 2, 0], [0, 0, 2]]
    assert missing(KEPT, ORDER).tolist() == [[0, 0, 1], [0, 0, 2]]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(9)), st.sets(st.integers(0, 8), min_size=2))
def test_gaps_add_up(order: list[int], kept: set[int]) -> None:
    """SS9: gaps, the token itself counted, sum up to last place - first place in any order."""
    positions = torch.tensor([sorted(kept)])
    place = ranks(positions, order)
    gaps = missing(positions, order)[:, 1:] + 1
    assert gaps.sum() == place[0, -1] - place[0, 0]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)), st.sets(st.integers(0, 7), min_size=1))
def test_way_leads_from_one_order_to_another(
    before: list[int], after: list[int], kept: set[int]
) -> None:
    positions = torch.tensor([sorted(kept)])
    here = torch.tensor([[t for t in before if t in kept]])
    there = [t for t in after if t in kept]
    assert here.gather(1, way(positions, before, after)).tolist() == [there]
    assert positions.gather(1, way(positions, None, after)).tolist() == [there]
    assert here.gather(1, way(positions, before, None)).tolist() == positions.tolist()


def test_passed_is_missing_where_each_counts_one() -> None:
    widths = torch.ones(2, 6).scatter(1, KEPT, 0.0)
    for order in (None, ORDER):
        torch.testing.assert_close(passed(widths, KEPT, order), missing(KEPT, order))


def test_widths_are_noted_for_what_goes() -> None:
    here, kept = torch.tensor([[0, 2, 5]]), torch.tensor([[2]])
    before = torch.tensor([[0.0, 7.0, 0.0, 8.0, 9.0, 0.0]])
    found = note_widths(before, here, kept, torch.tensor([[1.0, 2.0, 3.0]]))
    assert found.tolist() == [[1.0, 7.0, 0.0, 8.0, 9.0, 3.0]]


def test_width_of_a_token_of_zeros_is_one() -> None:
    bias = torch.randn(4, generator=torch.Generator().manual_seed(0))
    delta = functional.softplus(bias).expand(1, 3, 4)
    torch.testing.assert_close(step_width(delta, bias), torch.ones(1, 3))


def test_slowed_adds_steps_of_zeros() -> None:
    decay, bias = torch.rand(1, 3, 2), torch.tensor([0.5, -1.0])
    found = slowed(decay, torch.tensor([[0.0, 2.0, 1.0]]), bias)
    torch.testing.assert_close(found[0, 0], decay[0, 0])
    torch.testing.assert_close(found[0, 1] - decay[0, 1], 2 * functional.softplus(bias))


def test_spread_and_token_at() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    whole = spread(x, KEPT, tokens=6)
    assert torch.equal(whole.gather(1, KEPT[:, :, None].expand(-1, -1, 4)), x)
    assert whole.abs().sum() == x.abs().sum()
    assert torch.equal(token_at(x[:1], KEPT[:1], 3), x[:1, 1])
    assert among(KEPT, [3, 5]).tolist() == [[False, True, False], [False, False, True]]
