"""What scripts/coverage takes, writes and goes on with."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.scripts.loading import loaded


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    """The script as a module."""
    return loaded("coverage")


class Attention(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1)).unbind(2)
        return self.proj(functional.scaled_dot_product_attention(q, k, v))


class WindowAttention(Attention):
    pass


class Block(nn.Module):
    def __init__(self, kind: type[Attention] = Attention, width: int = 4) -> None:
        super().__init__()
        self.attn = kind(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attn(x)


def model(*blocks: nn.Module) -> nn.Module:
    return nn.ModuleDict({"blocks": nn.Sequential(*blocks)})


def test_a_block_type_is_the_classes_of_its_attention(coverage: ModuleType) -> None:
    assert coverage.block_type(model(Block(), Block())) == (("Block", "Attention"),)
    both = coverage.block_type(model(Block(), Block(WindowAttention)))
    assert both == (("Block", "Attention"), ("Block", "WindowAttention"))
    assert coverage.block_type(model(nn.Linear(3, 3))) == ()


def test_the_smallest_of_each_block_type_is_taken(coverage: ModuleType) -> None:
    found = coverage.smallest_of_each(
        [
            ("large", model(Block(width=8)), 224),
            ("small", model(Block(width=4)), 224),
            ("tiny_at_384", model(Block(width=2)), 384),
            ("windowed", model(Block(WindowAttention, width=8)), 512),
            ("no_attention", model(nn.Linear(1, 1)), 224),
        ]
    )
    assert found == {
        (("Block", "Attention"),): "small",
        (("Block", "WindowAttention"),): "windowed",
    }


def test_attention_over_channels_is_no_attention(coverage: ModuleType) -> None:
    layers = pytest.importorskip("timm.layers")
    assert not coverage.is_attention(layers.squeeze_excite.EffectiveSEModule)
    assert not coverage.is_attention(layers.cbam.ChannelAttn)
    assert coverage.is_attention(layers.Attention)


def test_rows_are_written_and_read_again(coverage: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.csv"
    row = coverage.Row(
        family="vit", model="timm/a(depth=2)", block="Block.Attention", method="tome",
        prefix_tokens=1, tokens=197, sites=36, outcome="compiled", macs_ratio=0.7,
        difference=1e-6, checks="dense keep", seconds=3.5, reason='a, "b"\nc',
    )  # fmt: skip
    coverage.append_rows(path, [row])
    coverage.append_rows(path, [row])
    assert path.read_text().count("family,") == 1
    rows = coverage.read_rows(path)
    assert len(rows) == 2
    assert rows[0].model == row.model
    assert rows[0].reason == row.reason
    assert float(rows[0].difference) == row.difference
    assert coverage.read_rows(tmp_path / "none.csv") == []


def test_resuming_leaves_out_what_is_done_and_repeats_what_failed(coverage: ModuleType) -> None:
    found = [coverage.Candidate(family="f", name=f"timm/{n}") for n in "abcd"]

    def row(name: str, outcome: str) -> object:
        return coverage.Row(family="f", model=f"timm/{name}", block="", method="", outcome=outcome)

    rows = [row("a", "compiled"), row("b", "refused"), row("c", "compiled"), row("c", "failed")]
    assert [c.name for c in coverage.remaining(found, rows)] == ["timm/c", "timm/d"]
    assert coverage.summary(rows).splitlines()[0] == "compiled: 2 models"


def test_weights_matter_afterwards(coverage: ModuleType) -> None:
    block = nn.Module()
    block.gamma = nn.Parameter(torch.full((6,), 1e-5))
    block.head = nn.Linear(9, 6)
    nn.init.zeros_(block.head.weight)
    block.flat = nn.Linear(16, 6)
    nn.init.normal_(block.flat.weight, std=0.02)
    coverage.make_weights_matter(block)
    assert 0.1 < block.gamma.abs().mean() < 1.5
    assert block.head.weight.std() > 0.01
    assert block.flat.weight.std().item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("attentions_before", [0, 1])
def test_masked_tokens_are_gone(coverage: ModuleType, attentions_before: int) -> None:
    """Two blocks and a mean: masking tokens from the first or the second block on."""
    torch.manual_seed(3)
    blocks = [Block(), Block()]
    x, kept = torch.randn(2, 7, 4), [0, 2, 3, 6]
    with torch.no_grad():
        expected = x[:, kept] if attentions_before == 0 else blocks[0](x)[:, kept]
        for block in blocks[attentions_before:]:
            expected = block(expected)
        with coverage.MaskTokens(tokens=7, prefix=1, kept=[(attentions_before, kept)]):
            got = nn.Sequential(*blocks)(x).mean(dim=1)
    torch.testing.assert_close(got, expected.mean(dim=1), rtol=1e-5, atol=1e-6)


def test_a_refusal_names_its_operation(coverage: ModuleType) -> None:
    assert coverage.names_operation("cannot remove tokens before a.b: aten.roll.default on [B, 4]")
    assert not coverage.names_operation("unsupported")


@pytest.mark.slow
def test_one_model_through_all_checks(coverage: ModuleType) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("onnxruntime")
    candidate = coverage.Candidate(family="vit", name="timm/test_vit", options={"depth": 2})
    rows = coverage.run(candidate)
    assert [row.outcome for row in rows] == ["compiled"], rows[0].reason
    assert rows[0].checks.split() == ["dense", "onnx", "keep", "masked", "twice"]
