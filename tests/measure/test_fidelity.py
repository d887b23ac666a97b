"""Fidelity by hand-computed class scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunepass.errors import ModelError
from prunepass.measure.fidelity import compare, fidelity, kl


def test_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): KL = ln(2/3) / 2 + ln(2) / 2 = ln(4/3) / 2.
    dense = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    other = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log() + 3.0
    expected = torch.tensor([math.log(4 / 3) / 2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(kl(dense, other), expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 30))
def test_kl_is_never_negative_and_zero_for_equal(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(4, 7, generator=generator) * scale for _ in range(2))
    assert bool((kl(one, other) >= -1e-12).all())
    assert bool((kl(one, one) == 0).all())


def test_fidelity_by_hand() -> None:
    # Seven classes; class scores fall from left to right of each order.
    def scores(*orders: list[int]) -> Tensor:
        rows = torch.zeros(len(orders), 7)
        for row, order in zip(rows, orders, strict=True):
            row[order] = torch.arange(7.0, 7.0 - len(order), -1.0)
        return rows

    dense = scores([0, 1, 2, 3, 4, 5, 6], [1, 0, 2, 3, 4, 5, 6], [2, 1, 0, 3, 4, 5, 6],
                   [3, 1, 2, 0, 4, 5, 6])  # fmt: skip
    other = scores([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6], [2, 1, 0, 3, 4, 5, 6],
                   [6, 1, 2, 0, 4, 5, 3])  # fmt: skip
    labels = torch.tensor([0, 1, 6, 3])
    found = compare(dense, other, labels)
    assert found.count == 4
    assert found.top1_dense == 0.75
    assert found.top1 == 0.25
    assert found.top5_dense == 0.75
    assert found.top5 == 0.5  # class 3 comes last in the fourth
    assert found.agreement == 0.5
    rows = kl(dense, other)
    assert found.kl == pytest.approx(float(rows.mean()), rel=1e-12, abs=0.0)
    assert found.kl_error == pytest.approx(float(rows.std()) / 2, rel=1e-12, abs=0.0)


def test_batches_are_joined_and_told() -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    images, labels = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), torch.arange(7)
    told: list[int] = []
    found = fidelity(
        lambda x: (x @ weight,),
        lambda x: (x @ weight * 0.5,),
        [(images[:4], labels[:4] % 3), (images[4:], labels[4:] % 3)],
        progress=told.append,
    )
    assert told == [4, 3]
    whole = compare(images @ weight, images @ weight * 0.5, labels % 3)
    assert found.agreement == whole.agreement == 1.0
    assert found.kl == pytest.approx(whole.kl, rel=1e-6, abs=1e-9)


def test_one_picture_has_no_error() -> None:
    found = compare(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([-1]))
    assert found.kl_error == 0.0
    assert found.top1_dense == found.top1 == 0.0


def test_no_pictures() -> None:
    with pytest.raises(ModelError, match="no pictures"):
        fidelity(lambda x: (x,), lambda x: (x,), [])


def test_no_classifier() -> None:
    batch = (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ModelError, match="needs a classifier"):
        fidelity(lambda x: (x,), lambda x: (x,), [batch])
