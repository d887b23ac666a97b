from __future__ import annotations

import pytest
import torch

from prunepass.rules.cls_attention import cls_attention
from tests.rules.example import attention


def test_by_hand() -> None:
    a = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.5]]]])
    assert cls_attention(a, prefix=1).tolist() == [[0.25, 0.75]]


def test_only_the_first_row_matters() -> None:
    a = attention(2, 3, 9)
    other = attention(2, 3, 9, seed=1)
    other[:, :, 0] = a[:, :, 0]
    assert torch.equal(cls_attention(a, prefix=1), cls_attention(other, prefix=1))


def test_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="received-attention"):
        cls_attention(attention(1, 1, 3), prefix=0)
