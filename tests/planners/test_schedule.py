"""The shapes of schedules, by hand and by property."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prunepass.planners.schedule import (
    constant_counts,
    default_exponent,
    depth_counts,
    stage_counts,
)

few = settings(max_examples=150, deadline=None)
sites = st.integers(1, 30)
patches = st.integers(1, 1200)
prefixes = st.integers(0, 6)
share = st.floats(0.01, 1.0)


def check(counts: list[int], start: int, prefix: int) -> None:
    """Counts never rise, and one image token stays."""
    assert all(isinstance(count, int) for count in counts)
    for before, after in zip([start, *counts], counts, strict=False):
        assert prefix + 1 <= after <= before


def halved_at_most(counts: list[int], start: int, prefix: int) -> None:
    for before, after in zip([start, *counts], counts, strict=False):
        assert before - after <= (before - prefix) // 2


def test_depth_by_hand() -> None:
    # 20 image tokens: halves; 20 * 0.9 * 0.7 = 12.6; halves with the odd token staying.
    assert depth_counts(2, 21, 1, strength=0.5, exponent=0.0) == [11, 6]
    assert depth_counts(2, 21, 1, strength=0.4, exponent=1.0) == [19, 14]
    assert depth_counts(3, 21, 1, strength=4.0, exponent=0.0) == [11, 6, 4]
    assert depth_counts(2, 25, 5, strength=0.9, exponent=0.0, cap=0.9) == [7, 6]
    assert depth_counts(2, 20, 0, strength=0.2, exponent=0.0, cap=0.1) == [18, 16]


def test_small_shares_are_saved_up() -> None:
    # Shares 0.01, 0.03, 0.05, 0.07 of 1000 tokens: the first two wait for the third.
    counts = depth_counts(4, 1000, 0, strength=0.08, exponent=1.0, least=0.05)
    assert counts == [1000, 1000, round(1000 * 0.91), round(1000 * 0.91 * 0.93)]
    strong = depth_counts(4, 1000, 0, strength=0.8, exponent=1.0, least=0.05)
    assert strong == depth_counts(4, 1000, 0, strength=0.8, exponent=1.0)


def test_constant_by_hand() -> None:
    # 20 - 2.5 = 17.5, 15, 12.5: halves round to even; 20 - 15 = 5 is more than a half in one step.
    assert constant_counts(3, 21, 1, removed=2.5) == [19, 16, 13]
    assert constant_counts(3, 21, 1, removed=15) == [11, 6, 4]
    assert constant_counts(4, 197, 1, removed=16) == [181, 165, 149, 133]
    assert constant_counts(2, 2, 1, removed=5) == [2, 2]


def test_stages_as_published_for_zero_tprune() -> None:
    counts = stage_counts(197, 1, ratios=(1.0, 0.9, 0.8, 0.7, 1.0), similar=(10,) * 5)
    assert counts == [187, 160, 120, 77, 67]


def test_stages_by_hand() -> None:
    assert stage_counts(21, 1, ratios=(0.5, 0.5), similar=(0, 1)) == [11, 5]
    assert stage_counts(21, 1, ratios=(0.01, 0.5), similar=(0, 0)) == [2, 2]
    assert stage_counts(10, 2, ratios=(0.3,), similar=(0,)) == [3]


@few
@given(sites, patches, prefixes, st.floats(0, 50), st.floats(0, 4))
def test_depth_properties(
    count: int, image: int, prefix: int, strength: float, exponent: float
) -> None:
    start = image + prefix
    counts = depth_counts(count, start, prefix, strength=strength, exponent=exponent)
    assert len(counts) == count
    check(counts, start, prefix)
    halved_at_most(counts, start, prefix)


@few
@given(sites, patches, prefixes, st.floats(0, 50), st.floats(0.05, 1.0))
def test_a_cap_holds_up_to_rounding(
    count: int, image: int, prefix: int, strength: float, cap: float
) -> None:
    start, exact = image + prefix, float(image)
    counts = depth_counts(count, start, prefix, strength=strength, exponent=1.0, cap=cap)
    check(counts, start, prefix)
    for after in counts:
        exact *= 1 - cap
        assert after - prefix >= min(image, int(exact))


@few
@given(sites, patches, prefixes, st.floats(0, 300))
def test_constant_properties(count: int, image: int, prefix: int, removed: float) -> None:
    start = image + prefix
    counts = constant_counts(count, start, prefix, removed=removed)
    assert len(counts) == count
    check(counts, start, prefix)
    halved_at_most(counts, start, prefix)


@few
@given(
    patches,
    prefixes,
    st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(0, 40)), min_size=1, max_size=8),
)
def test_stage_properties(image: int, prefix: int, stages: list[tuple[float, int]]) -> None:
    counts = stage_counts(
        image + prefix, prefix, ratios=[r for r, _ in stages], similar=[s for _, s in stages]
    )
    check(counts, image + prefix, prefix)


@few
@given(sites, patches, prefixes, st.floats(0, 4))
def test_strength_zero_removes_nothing(
    count: int, image: int, prefix: int, exponent: float
) -> None:
    start = image + prefix
    assert depth_counts(count, start, prefix, strength=0.0, exponent=exponent) == [start] * count
    assert constant_counts(count, start, prefix, removed=0.0) == [start] * count
    assert stage_counts(start, prefix, ratios=[1.0], similar=[0]) == [start]


@few
@given(sites, patches, st.floats(0, 3), st.floats(0, 2), st.floats(0, 2))
def test_more_strength_never_keeps_more(
    count: int, image: int, exponent: float, one: float, other: float
) -> None:
    weak, strong = sorted((one, other))
    before = depth_counts(count, image + 1, 1, strength=weak, exponent=exponent)
    after = depth_counts(count, image + 1, 1, strength=strong, exponent=exponent)
    assert all(b >= a for b, a in zip(before, after, strict=True))


@few
@given(share, share)
def test_the_default_exponent_rises_with_the_ratio(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0.0 <= default_exponent(low) <= default_exponent(high) <= 2.75
