"""Merged tokens count by their size, also where batch and heads share an axis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunepass
from prunepass.errors import UnsupportedGraph
from tests.steps import step
from tests.tiny_models import CHANNELS, CLASSES, Block


class Pooled(nn.Module):
    """Patches without positions, two blocks, and nn.MultiheadAttention that pools them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, CHANNELS, 6, 6)
        self.blocks = nn.Sequential(Block(), Block())
        self.probe = nn.Parameter(torch.empty(1, 1, CHANNELS))
        self.pool = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patch(images).flatten(2).transpose(1, 2))
        probe = self.probe.repeat(x.shape[0], 1, 1)
        logits: Tensor = self.head(self.pool(probe, x, x)[0][:, 0])
        return logits


class HeadsFirst(Pooled):
    """Pools with batch and heads on one axis, the heads outermost."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patch(images).flatten(2).transpose(1, 2))
        batch, tokens, channels = x.shape
        rows = x.reshape(batch, tokens, 2, channels // 2).permute(2, 0, 1, 3)
        rows = rows.reshape(2 * batch, tokens, channels // 2)
        probe = self.probe.reshape(2, 1, 1, -1).expand(2, batch, 1, -1).reshape(2 * batch, 1, -1)
        weights = torch.bmm(probe, rows.transpose(1, 2)).softmax(dim=-1)
        out = torch.bmm(weights, rows).reshape(2, batch, -1).permute(1, 0, 2)
        logits: Tensor = self.head(out.reshape(batch, channels))
        return logits


def made(kind: type[Pooled]) -> Pooled:
    model = kind().eval().double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def pairs(batch: int) -> Tensor:
    """Pictures of 4 x 4 patches, each equal to its neighbour."""
    generator = torch.Generator().manual_seed(batch)
    patches = torch.randn(batch, 3, 4, 6, 2, 6, generator=generator, dtype=torch.float64)
    return patches.repeat_interleave(2, dim=4).reshape(batch, 3, 24, 24)


MERGE = [step("block[0].attention", "tome", 8, "merge")]


@pytest.mark.parametrize("batch", [1, 3])
def test_pooling_with_packed_heads_counts_merged_tokens(batch: int) -> None:
    program = prunepass.capture(made(Pooled), (pairs(2),))
    fingerprint = prunepass.sites(program).fingerprint
    plan = prunepass.Plan(method="tome", steps=tuple(MERGE), fingerprint=fingerprint)
    merged = prunepass.apply_plan(program, plan).module()
    images = pairs(batch)
    expected = program.module()(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(merged(images), expected, rtol=1e-9, atol=1e-10)


def test_an_order_of_heads_that_is_not_known_is_refused() -> None:
    program = prunepass.capture(made(HeadsFirst), (pairs(2),))
    fingerprint = prunepass.sites(program).fingerprint
    plan = prunepass.Plan(method="tome", steps=tuple(MERGE), fingerprint=fingerprint)
    with pytest.raises(UnsupportedGraph, match="cannot merge tokens") as caught:
        prunepass.apply_plan(program, plan)
    assert "2 heads on one axis" in str(caught.value.found)
