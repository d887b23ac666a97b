"""Streams that are no sequence [B, T, C]: they get sites, and a reason in place of a reduction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunepass.analyse.sites import sites
from prunepass.capturing import capture
from prunepass.errors import UnsupportedGraph
from prunepass.planners.budget import plan


class OnGrid(nn.Module):
    """Tokens [B, H, W, C], attention within rows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 14, 4, 4), nn.Linear(14, 42)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).permute(0, 2, 3, 1)
        x = x + functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1))
        return x.mean(dim=(1, 2))


class TokensFirst(nn.Module):
    """Tokens [T, B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attn = nn.Conv2d(3, 14, 4, 4), nn.MultiheadAttention(14, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).permute(2, 0, 1)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x.mean(dim=0)


class Linear(nn.Module):
    """Attention without a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 14, 4, 4), nn.Linear(14, 42)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return (x + q @ (k.transpose(1, 2) @ v)).mean(dim=1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(OnGrid, "aten.add.Tensor on [B, 5, 6, 14]"), (TokensFirst, "axis 1 is the batch")],
)
def test_another_layout_is_refused_by_name(model: type[nn.Module], reason: str) -> None:
    program = capture(model().eval(), (torch.randn(2, 3, 20, 24),))
    found = sites(program)
    assert len(found)
    assert all(site.refusal is not None and reason in site.refusal for site in found)
    assert found.missing is None
    with pytest.raises(UnsupportedGraph, match="sequence"):
        plan(program, flops=0.7)


def test_a_grid_counts_its_places() -> None:
    program = capture(OnGrid().eval(), (torch.randn(2, 3, 20, 24),))
    assert {(site.tokens, site.channels) for site in sites(program)} == {(30, 14)}


def test_no_site_at_all_names_an_operation() -> None:
    program = capture(Linear().eval(), (torch.randn(2, 3, 20, 24),))
    found = sites(program)
    assert len(found) == 0
    assert found.missing is not None
    assert "aten.matmul" in found.missing
    with pytest.raises(UnsupportedGraph, match=r"aten\.matmul"):
        plan(program, flops=0.7)
