"""Which tiles a picture of any size becomes, and which of their tokens a model reads."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunepass.sources.preprocess import Preprocessing
from prunepass.vlm.prepare import cut, fitted
from prunepass.vlm.tiles import Tiles, Tiling, joined

GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
LLAVA = Tiling(side=336, patches=24, grids=GRIDS)
SMALL = Tiling(side=32, patches=4, grids=((32, 64), (64, 32), (64, 64)))


def test_of_a_grid_that_fits_every_token_is_read() -> None:
    assert LLAVA.grid((672, 672)) == (672, 672)
    assert LLAVA.tiles((672, 672)) == 5
    assert LLAVA.tokens((672, 672)) == 576 + 48 * 49
    assert SMALL.order((32, 64))[:16].tolist() == [*range(16)]
    # The first row of the grid: four tokens of the tile on the left, of the one on the right, and
    # the newline of the first tile.
    assert SMALL.order((32, 64))[16:25].tolist() == [17, 18, 19, 20, 34, 35, 36, 37, 16]


def test_padding_is_not_read() -> None:
    assert SMALL.shown((16, 64)) == (2, 8)
    assert SMALL.order((16, 64))[16:25].tolist() == [21, 22, 23, 24, 38, 39, 40, 41, 16]
    assert SMALL.tokens((16, 64)) == 16 + 2 * 9


@pytest.mark.parametrize("tiling", [LLAVA, SMALL])
def test_tokens_stand_as_in_the_model(tiling: Tiling) -> None:
    transformers = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    config = SimpleNamespace(
        vision_config=SimpleNamespace(
            image_size=tiling.side, patch_size=tiling.side // tiling.patches
        ),
        image_grid_pinpoints=[list(grid) for grid in tiling.grids],
    )
    model: Any = SimpleNamespace(config=config)
    draw, newline = random.Random(0), torch.tensor([float(tiling.patches**2)])
    for _ in range(200):
        size = (draw.randint(20, 1500), draw.randint(20, 1500))
        tiles = transformers.image_size_to_num_patches(
            size, config.image_grid_pinpoints, tiling.side
        )
        assert tiling.tiles(size) == tiles
        row = tiling.patches**2 + 1
        numbers = torch.arange(float(tiles * row)).reshape(tiles, row, 1)
        (told,), _ = transformers.LlavaNextModel.pack_image_features(
            model, [numbers[:, :-1]], torch.tensor([size]), "default", image_newline=newline
        )
        assert tiling.order(size).tolist() == told[:, 0].long().tolist()
        assert tiling.tokens(size) == len(told)


def test_pictures_of_one_prompt_are_packed_one_by_one() -> None:
    sizes = ((16, 64), (16, 63))
    assert SMALL.tokens(sizes[0]) == SMALL.tokens(sizes[1])
    features = torch.randn(6, 17, 5, generator=torch.Generator().manual_seed(0))
    found = SMALL.packed(features, sizes)
    for part, rows, size in zip(found, features.split(3), sizes, strict=True):
        assert torch.equal(part, SMALL.packed(rows, [size])[0])


def test_a_picture_is_cut_as_the_processor_cuts_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    side = LLAVA.side
    processor = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side},
        image_grid_pinpoints=[list(grid) for grid in GRIDS],
    )  # fmt: skip
    preprocessing = Preprocessing(
        height=side, width=side, resize=side, fit="squash",
        mean=tuple(processor.image_mean), std=tuple(processor.image_std),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for size in ((300, 500), (700, 200), (336, 336)):
        pixels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(pixels.numpy())
        told = processor(picture, return_tensors="pt")
        found = cut(picture, preprocessing, LLAVA)
        assert found.sizes == (size,)
        assert tuple(told["image_sizes"][0].tolist()) == size
        torch.testing.assert_close(found.pixels, told["pixel_values"][0], rtol=1e-5, atol=1e-5)


def test_a_picture_fills_a_grid_in_one_direction() -> None:
    assert fitted((300, 500), (672, 672)) == (404, 672)
    assert fitted((500, 300), (672, 336)) == (560, 336)
    assert fitted((10, 10), (672, 336)) == (336, 336)


def test_pictures_of_several_prompts_are_joined() -> None:
    one, other = (Tiles(torch.full((3, 3, 32, 32), float(i)), ((16, 64 + i),)) for i in (0, 1))
    both = joined([one, other])
    assert len(both) == 2
    assert both.sizes == ((16, 64), (16, 65))
    assert both.pixels[:, 0, 0, 0].tolist() == [0.0] * 3 + [1.0] * 3
