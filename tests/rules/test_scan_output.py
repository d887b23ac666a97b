from __future__ import annotations

import pytest
import torch

from prunepass.rules.scan_output import scan_output


def test_by_hand() -> None:
    y = torch.tensor([[[1.0, -2.0], [-1.0, -3.0], [0.5, 0.25], [0.0, 4.0]]])
    assert scan_output(y).tolist() == [[1.0, 0.0, 0.75, 4.0]]
    assert scan_output(y, clip="l1").tolist() == [[3.0, 4.0, 0.75, 4.0]]
    assert scan_output(y, clip="none").tolist() == [[-1.0, -4.0, 0.75, 4.0]]
    torch.testing.assert_close(scan_output(y, clip="l2")[0, 0], torch.tensor(5.0).sqrt())


def test_never_negative_and_blind_to_the_order_of_channels() -> None:
    """SS7."""
    y = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    score = scan_output(y)
    assert (score >= 0).all()
    assert (scan_output(-y.abs()) == 0).all()
    torch.testing.assert_close(scan_output(y[:, :, torch.randperm(6)]), score)


def test_half_precision_is_finite() -> None:
    assert torch.isfinite(scan_output(torch.full((1, 2, 400), 1000.0).half())).all()


def test_an_unknown_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        scan_output(torch.zeros(1, 2, 3), clip="relu")
