from __future__ import annotations

import pytest
import torch

from prunepass.rules.similarity import METRICS, cosine, head_rows, similarity, unit
from tests.rules.example import numbers


def test_unit_rows_have_length_one_and_zero_stays_zero() -> None:
    x = numbers(2, 3, 4)
    x[0, 1] = 0.0
    length = unit(x).norm(dim=-1)
    expected = torch.ones(2, 3, dtype=torch.float64)
    expected[0, 1] = 0.0
    torch.testing.assert_close(length, expected, rtol=1e-14, atol=0)


def test_unit_is_finite_at_the_ends_of_half_precision() -> None:
    x = torch.tensor([[6e4, 6e4, -6e4], [6e-8, 0.0, 0.0]], dtype=torch.float16)
    out = unit(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float().norm(dim=-1), torch.ones(2), rtol=1e-3, atol=0)


def test_unit_ignores_a_power_of_two_to_the_bit() -> None:
    x = numbers(2, 3, 4)
    assert torch.equal(unit(x * 8.0), unit(x))


@pytest.mark.parametrize("metric", METRICS)
def test_metric_against_loops(metric: str) -> None:
    a, b = numbers(2, 3, 4, seed=1), numbers(2, 5, 4, seed=2)
    order = {"l1": 1.0, "l2": 2.0, "minkowski-inf": float("inf")}.get(metric)
    if metric.startswith("minkowski") and order is None:
        order = float(metric.removeprefix("minkowski-"))
    expected = torch.empty(2, 3, 5, dtype=torch.float64)
    for image in range(2):
        for i in range(3):
            for j in range(5):
                left, right = a[image, i], b[image, j]
                if metric == "dot":
                    value = left.dot(right)
                elif metric == "cosine":
                    value = left.dot(right) / (left.norm() * right.norm())
                else:
                    assert order is not None
                    value = -torch.linalg.vector_norm(left - right, ord=order)
                expected[image, i, j] = value
    torch.testing.assert_close(similarity(a, b, metric=metric), expected, rtol=1e-12, atol=1e-14)


def test_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="minkowski-inf"):
        similarity(numbers(1, 2, 3), numbers(1, 2, 3), metric="hamming")


def test_cosine_of_joined_unit_vectors_is_the_mean_of_two_cosines() -> None:
    k, x = numbers(2, 6, 4, seed=1), numbers(2, 6, 7, seed=2)
    joined = torch.cat([unit(k), unit(x)], dim=-1)
    expected = (cosine(k, k) + cosine(x, x)) / 2
    torch.testing.assert_close(cosine(joined, joined), expected, rtol=1e-12, atol=1e-14)


def test_head_rows() -> None:
    key = numbers(2, 3, 5, 4)
    assert torch.equal(head_rows(key, heads="mean"), key.mean(1))
    joined = head_rows(key, heads="concat")
    assert joined.shape == (2, 5, 12)
    assert torch.equal(joined[1, 4, 4:8], key[1, 1, 4])
    with pytest.raises(ValueError, match="heads='sum'"):
        head_rows(key, heads="sum")
