"""The down-sampling baseline: the same model at a smaller picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from prunepass.bundle import read_manifest, read_plan
from prunepass.compiler import Compiled
from prunepass.downsample import Downsampled, downsample
from prunepass.errors import PlanError
from prunepass.planners.methods import DOWNSAMPLE
from prunepass.sources.model import LoadedModel
from prunepass.sources.preprocess import Preprocessing
from tests.planners.plain_vit import PlainVit


def vit(size: int) -> nn.Module:
    """Patches of 4 x 4 pixels."""
    return PlainVit(depth=1, grid=size // 4, patch=4, channels=12, heads=2, classes=5)


LOADED = LoadedModel(
    spec="vit",
    module=vit(36),
    preprocessing=Preprocessing(height=36, width=36, resize=36),
    weights="random",
)


def run(folder: Path, *, flops: float, built: list[int]) -> Compiled:
    def rebuild(size: int) -> nn.Module:
        built.append(size)
        return vit(size)

    return downsample(
        LOADED, flops=flops, rebuild=rebuild, folder=folder, backend="eager", batch=None,
        force=False, name="vit", weights="random", preprocessing=None, on_stage=None,
    )  # fmt: skip


def test_the_largest_size_within_the_budget(tmp_path: Path) -> None:
    built: list[int] = []
    made = run(tmp_path / "b", flops=0.6, built=built)
    # (28 / 36) ** 2 = 0.605 is above the budget but built, since MACs fall faster than the area.
    assert made.plan.notes["image_size"] == built[-1]
    # Shrinking counts, too, and is no small thing for a model as small as this.
    assert built == list(range(28, built[-1] - 1, -4))
    assert made.plan.steps == ()
    assert made.plan.method == made.report.method == DOWNSAMPLE
    assert 0.2 < made.report.macs_ratio <= 0.6
    assert made.plan.notes["macs_ratio"] == round(made.report.macs_ratio, 4)
    assert read_plan(tmp_path / "b" / "plan.json") == made.plan
    # It takes pictures of the full size, and shrinks them by itself.
    ((shape, _),) = read_manifest(tmp_path / "b").inputs.values()
    assert shape == [0, 3, 36, 36]
    x = torch.randn(3, 3, 36, 36, generator=torch.Generator().manual_seed(2))
    expected = Downsampled(vit(built[-1]), 36, built[-1])(x)
    torch.testing.assert_close(made.engine(x)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.dense(x)[0], LOADED.module(x), rtol=1e-4, atol=1e-5)


def test_the_whole_budget_is_the_model_itself(tmp_path: Path) -> None:
    built: list[int] = []
    made = run(tmp_path / "b", flops=1.0, built=built)
    assert built == []
    assert made.report.macs_ratio == 1.0


@pytest.mark.parametrize("flops", [1e-6, 0.0, 1.5])
def test_budgets_that_cannot_be_met(tmp_path: Path, flops: float) -> None:
    with pytest.raises(PlanError):
        run(tmp_path / "b", flops=flops, built=[])
    assert list(tmp_path.iterdir()) == []
