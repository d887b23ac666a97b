"""Fused attention with a mask of its own: a live-in on two axes, also where it is narrowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import prunepass

transformers = pytest.importorskip("transformers")


class Logits(nn.Module):
    """transformers' ViT, which hands a mask of ones to its attention."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=64,
            patch_size=8,
            num_labels=7,
        )
        config._attn_implementation = "sdpa"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = transformers.ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images).logits
        return logits


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return prunepass.capture(Logits().eval().double(), (pictures(2),))


def pictures(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, 64, 64, generator=generator, dtype=torch.float64)


def test_unread_alone_is_exact(program: ExportedProgram) -> None:
    plan = prunepass.plan(program, flops=0.9)
    assert [step.rule for step in plan.steps] == ["unread"]
    reduced = prunepass.apply_plan(program, plan)
    torch.testing.assert_close(
        reduced.module()(pictures(3)), program.module()(pictures(3)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("method", ["weighted-merge", "tome"])
def test_merging_before_a_narrowed_attention_runs_at_any_batch(
    program: ExportedProgram, method: str
) -> None:
    plan = prunepass.plan(program, method=method, flops=0.6)
    assert plan.steps[-1].rule == "unread"
    assert len(plan.steps) > 1
    reduced = prunepass.apply_plan(program, plan).module()
    images = pictures(3)
    together = reduced(images)
    singles = torch.cat([reduced(image[None]) for image in images])
    torch.testing.assert_close(together, singles, rtol=1e-9, atol=1e-11)
