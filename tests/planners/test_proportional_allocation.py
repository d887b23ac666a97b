"""ECoFLaP's allocation: properties E1 to E6."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunepass.errors import PlanError
from prunepass.planners.proportional_allocation import allocate_by_score

BLOCKS = st.lists(
    st.tuples(st.floats(0, 100, allow_nan=False), st.integers(1, 5000)), min_size=1, max_size=9
)


def test_e1_equal_scores_and_sizes_are_uniform() -> None:
    assert allocate_by_score([2.0] * 4, [100] * 4, sparsity=0.4, most=0.5) == [60] * 4


@settings(max_examples=200, deadline=None)
@given(BLOCKS, st.floats(0, 1), st.floats(0, 0.4))
def test_e2_the_sum_is_exact_and_e3_sparsities_lie_in_range(
    blocks: list[tuple[float, int]], sparsity: float, more: float
) -> None:
    scores, sizes = [s for s, _ in blocks], [n for _, n in blocks]
    most = min(1.0, sparsity + more)
    kept = allocate_by_score(scores, sizes, sparsity=sparsity, most=most)
    assert sum(kept) == int((1 - sparsity) * sum(sizes) + 1e-9)
    for keep, size in zip(kept, sizes, strict=True):
        assert 0 <= keep <= size
        assert 1 - keep / size <= most + 1.0 / size + 1e-9


@settings(max_examples=200, deadline=None)
@given(BLOCKS, st.floats(0.05, 0.9), st.integers(0, 8), st.floats(0.1, 50))
def test_e4_a_higher_score_never_lowers_its_keep(
    blocks: list[tuple[float, int]], sparsity: float, which: int, more: float
) -> None:
    scores, sizes = [s for s, _ in blocks], [n for _, n in blocks]
    assume(which < len(blocks))
    most = min(1.0, sparsity + 0.1)
    before = allocate_by_score(scores, sizes, sparsity=sparsity, most=most)
    scores[which] += more
    assume(sum(scores) > more)
    after = allocate_by_score(scores, sizes, sparsity=sparsity, most=most)
    assert after[which] >= before[which]


def test_e5_no_room_between_the_two_is_uniform() -> None:
    kept = allocate_by_score([1.0, 9.0, 3.0], [100, 200, 300], sparsity=0.5, most=0.5)
    assert kept == [50, 100, 150]


def test_e6_one_dominant_score_saturates_and_the_rest_is_shared() -> None:
    kept = allocate_by_score([1e6, 1.0, 3.0], [100, 100, 100], sparsity=0.4, most=0.8)
    assert kept[0] == 100
    assert sum(kept) == 180
    assert kept[1:] == [30, 50]  # 20 each are safe, the other 40 go 1 : 3


def test_the_closed_form_holds_without_saturation() -> None:
    scores, sizes, p, most = [1.0, 2.0, 5.0], [1000, 4000, 3000], 0.5, 0.6
    told = [
        (1 - most) * n + s / sum(scores) * (most - p) * sum(sizes)
        for s, n in zip(scores, sizes, strict=True)
    ]
    assert allocate_by_score(scores, sizes, sparsity=p, most=most) == pytest.approx(told, abs=1)


def test_all_scores_zero_is_uniform() -> None:
    assert allocate_by_score([0.0, 0.0], [100, 300], sparsity=0.25, most=0.35) == [75, 225]


@pytest.mark.parametrize(
    ("scores", "sparsity", "most"),
    [([1.0], 0.5, 0.6), ([1.0, float("nan")], 0.5, 0.6), ([1.0, -1.0], 0.5, 0.6),
     ([1.0, 1.0], 0.5, 0.4), ([1.0, 1.0], 1.5, 2.0)],
)  # fmt: skip
def test_nonsense_is_refused(scores: list[float], sparsity: float, most: float) -> None:
    with pytest.raises(PlanError):
        allocate_by_score(scores, [10, 10], sparsity=sparsity, most=most)
