"""Vim and PlainMamba have the published sizes and names."""

from __future__ import annotations

import pytest
import torch
from prunepass.models import catalogue
from prunepass.models.plain_mamba import inverse, ways
from prunepass.models.tiny_ssm import tiny_plain_mamba, tiny_vim

PUBLISHED = {
    "vim_tiny_patch16_224": (7.1, 24, 192),
    "vim_small_patch16_224": (25.8, 24, 384),
    "vim_base_patch16_224": (97.6, 24, 768),
    "plain_mamba_l1": (7.6, 24, 192),
    "plain_mamba_l2": (26.1, 24, 384),
    "plain_mamba_l3": (51.0, 36, 448),
}
VIM_LAYER = {
    "mixer.A_log": (384, 16), "mixer.D": (384,), "mixer.A_b_log": (384, 16), "mixer.D_b": (384,),
    "mixer.in_proj.weight": (768, 192), "mixer.conv1d.weight": (384, 1, 4),
    "mixer.conv1d.bias": (384,), "mixer.x_proj.weight": (44, 384),
    "mixer.dt_proj.weight": (384, 12), "mixer.dt_proj.bias": (384,),
    "mixer.conv1d_b.weight": (384, 1, 4), "mixer.conv1d_b.bias": (384,),
    "mixer.x_proj_b.weight": (44, 384), "mixer.dt_proj_b.weight": (384, 12),
    "mixer.dt_proj_b.bias": (384,), "mixer.out_proj.weight": (192, 384), "norm.weight": (192,),
}  # fmt: skip
PLAIN_LAYER = {
    "mamba.A_log": (384, 16), "mamba.D": (384,), "mamba.direction_Bs": (5, 16),
    "mamba.in_proj.weight": (768, 192), "mamba.in_proj.bias": (768,),
    "mamba.conv2d.weight": (384, 1, 7, 7), "mamba.conv2d.bias": (384,),
    "mamba.x_proj.weight": (44, 384), "mamba.dt_proj.weight": (384, 12),
    "mamba.dt_proj.bias": (384,), "mamba.out_proj.weight": (192, 384),
    "mamba.out_proj.bias": (192,), "norm.weight": (192,), "norm.bias": (192,),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    millions, layers, channels = PUBLISHED[name]
    with torch.device("meta"):
        model = catalogue.catalogue()[name].build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert len(getattr(model, "backbone", model).layers) == layers  # type: ignore[arg-type]
    assert getattr(model, "backbone", model).pos_embed.shape[2] == channels  # type: ignore[union-attr]


def test_names_are_those_of_the_checkpoints() -> None:
    with torch.device("meta"):
        vim = catalogue.catalogue()["vim_tiny_patch16_224"].build().state_dict()
        plain = catalogue.catalogue()["plain_mamba_l1"].build().state_dict()
    for state, prefix, layer in (
        (vim, "layers.7.", VIM_LAYER), (plain, "backbone.layers.7.", PLAIN_LAYER)
    ):  # fmt: skip
        found = {n.removeprefix(prefix): tuple(v.shape) for n, v in state.items()
                 if n.startswith(prefix)}  # fmt: skip
        assert found == layer
    outside = {n for n in vim if not n.startswith("layers.")}
    assert outside == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "norm_f.weight", "head.weight", "head.bias",
    }  # fmt: skip
    assert tuple(vim["pos_embed"].shape) == (1, 197, 192)
    for name in ("ln1.weight", "patch_embed.stem.0.weight", "patch_embed.convs.0.weight",
                 "patch_embed.projection.weight", "layers.0.dw.1.running_mean"):  # fmt: skip
        assert f"backbone.{name}" in plain
    assert "head.fc.weight" in plain


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 4), (4, 3), (14, 14)])
def test_ways_visit_every_token_once_step_by_step(height: int, width: int) -> None:
    for order, directions in ways(height, width):
        assert sorted(order) == list(range(height * width))
        assert [order[i] for i in inverse(order)] == list(range(height * width))
        assert directions[0] == 0
        places = [divmod(token, width) for token in order]
        moves = {1: (0, 1), 2: (0, -1), 3: (-1, 0), 4: (1, 0)}
        for (r, c), (row, column), direction in zip(
            places, places[1:], directions[1:], strict=False
        ):
            assert (row - r, column - c) == moves[direction]


@pytest.mark.parametrize("build", [tiny_vim, tiny_plain_mamba])
def test_other_sizes_of_pictures_are_refused(build: object) -> None:
    model = build().eval()  # type: ignore[operator]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="no positions"):
        model(torch.randn(1, 3, 40, 40))
