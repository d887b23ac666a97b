"""Smaller pictures by two products."""

from __future__ import annotations

import pytest
import torch

from prunepass.rules.shrink import shrink, shrinking


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_two_products_resample_as_interpolation_does(dtype: torch.dtype) -> None:
    pixels = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    found = shrink(pixels.to(dtype), shrinking(40, 24), shrinking(56, 16))
    assert found.dtype == dtype
    right = torch.nn.functional.interpolate(pixels, (24, 16), mode="bicubic", antialias=True)
    limit = 2e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.float(), right, rtol=limit, atol=limit)
