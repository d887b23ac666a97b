from __future__ import annotations

import torch

from prunepass.rules.precision import widen


def test_half_precision_widens_and_nothing_narrows() -> None:
    assert widen(torch.ones(1, dtype=torch.float16)).dtype == torch.float32
    assert widen(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(1, dtype=dtype)
        assert widen(x) is x
