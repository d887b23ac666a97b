"""Counted multiply-accumulates against the closed forms of papers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.analyse.flops import count, macs
from prunepass.analyse.sites import sites
from prunepass.capturing import capture
from prunepass.graph import meta
from prunepass.passes.reduce_tokens import reduce_tokens
from tests.conftest import Captured, Reduced
from tests.steps import step
from tests.tiny_models import CHANNELS, CLASSES, DEPTH, MLP

WIDTH = 384  # DeiT-S: 12 blocks, 6 heads, MLP of 4 * 384
PATCH_EMBED = 196 * WIDTH * 3 * 16 * 16
HEAD = WIDTH * 1000


def block(tokens: int, width: int, mlp: int) -> int:
    """The closed form of a block: 4ND^2 + 2NDM + 2N^2D."""
    return 4 * tokens * width**2 + 2 * tokens * width * mlp + 2 * tokens**2 * width


@pytest.fixture(scope="module")
def deit_s() -> ExportedProgram:
    with torch.device("cpu"), torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("deit_small_patch16_224", pretrained=False).eval()
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return capture(model, (x,))


def without_scoring(nodes: Iterable[Node]) -> list[Node]:
    return [n for n in nodes if not any(":reduce" in label for label in meta.labels(n))]


def at_batch_one(node: Node) -> tuple[int, ...]:
    return meta.concrete_shape(node, 1) or ()


@pytest.mark.slow
def test_g10_deit_s_equals_the_closed_form(deit_s: ExportedProgram) -> None:
    assert block(197, WIDTH, 4 * WIDTH) == 12 * 197 * WIDTH**2 + 2 * 197**2 * WIDTH
    blocks = 12 * block(197, WIDTH, 4 * WIDTH)
    assert macs(deit_s) == blocks + PATCH_EMBED + HEAD
    assert round(blocks / 1e9, 3) == 4.541
    assert macs(deit_s, batch=5) == 5 * macs(deit_s)


@pytest.mark.slow
def test_zt15_zero_tprune_schedule_of_deit_s(deit_s: ExportedProgram) -> None:
    """After blocks 1, 3, 6, 9, 11 (counted from 1) stay 187, 160, 120, 77 and 67 tokens."""
    schedule = {0: (187, 30), 2: (160, 5), 5: (120, 5), 8: (77, 1), 10: (67, 1)}
    steps = [
        step(f"block[{i}].output", "zero-tprune", keep, iterations=rounds)
        for i, (keep, rounds) in schedule.items()
    ]
    program, record = reduce_tokens(deit_s, steps)
    assert [after for _, after in record.tokens.values()] == [187, 160, 120, 77, 67]
    tokens = [s.tokens for s in sites(program) if s.kind == "attention"]
    assert tokens == [197, 187, 187, 160, 160, 160, 120, 120, 120, 77, 77, 67]
    counted = count(without_scoring(program.graph.nodes), at_batch_one)
    expected = sum(block(n, WIDTH, 4 * WIDTH) for n in tokens)
    assert counted == expected + PATCH_EMBED + HEAD
    assert round(expected / 1e9, 3) == 3.076
    scoring = macs(program) - counted
    assert 0 < scoring < 0.02 * expected


def test_tiny_model(captured: Captured) -> None:
    embed = 20 * CHANNELS * 3 * 6 * 6
    expected = DEPTH * block(21, CHANNELS, MLP) + embed + CHANNELS * CLASSES
    assert macs(captured("class")) == expected
    assert macs(captured("class"), batch=7) == 7 * expected


def test_written_out_attention_costs_as_much_as_fused(captured: Captured) -> None:
    assert macs(captured("unfused")) == macs(captured("class"))


def test_talking_heads_cost_two_products_more(captured: Captured) -> None:
    assert macs(captured("talking")) - macs(captured("class")) == DEPTH * 2 * 21 * 21 * 2 * 2


def test_reduction_alone(reduced: Reduced) -> None:
    steps = [step("block[0].attention", "random", 12)]
    program, _ = reduced("class", steps)
    counted = count(without_scoring(program.graph.nodes), at_batch_one)
    attention = 4 * 21 * CHANNELS**2 + 2 * 21**2 * CHANNELS
    expected = attention + 2 * 12 * CHANNELS * MLP + 2 * block(12, CHANNELS, MLP)
    assert counted == expected + 20 * CHANNELS * 3 * 6 * 6 + CHANNELS * CLASSES


class Products(nn.Module):
    """One operation of each kind that is counted; sizes differ pairwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, (3, 5), groups=2)
        self.up = nn.ConvTranspose2d(4, 7, 2, stride=2)
        self.line = nn.Conv1d(14, 8, 3)

    def forward(self, image: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (
            self.up(self.conv(image)),
            self.line(a),
            torch.einsum("btc,bsc->bts", a.mT, b),
            torch.bmm(a.mT, b.mT),
            torch.addmm(b[0, 0, :1], a[0].mT, b[0].mT),
        )


def test_every_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 6, 9, 15, generator=generator)
    a = torch.randn(2, 14, 10, generator=generator)
    b = torch.randn(2, 16, 14, generator=generator)
    program = torch.export.export(Products().eval(), (image, a, b), strict=False)
    conv = 2 * 4 * 7 * 11 * (6 // 2) * 3 * 5
    up = 2 * 4 * 7 * 11 * 7 * 2 * 2
    line = 2 * 8 * 8 * 14 * 3
    product = 10 * 16 * 14
    assert macs(program) == conv + up + line + 2 * product + 2 * product + product
