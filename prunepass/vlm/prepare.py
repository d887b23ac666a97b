"""Pictures as the encoder of a bundle takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunepass.errors import UsageError
from prunepass.sources.pictures import opened, read_picture
from prunepass.sources.preprocess import Preprocessing, upright_rgb
from prunepass.vlm.manifest import VlmManifest
from prunepass.vlm.tiles import Size, Tiles, Tiling, joined

Shown = Tensor | Tiles
"""Pictures of one prompt: pixels [I, 3, H, W], or tiles where pictures may have any size."""


def shown(images: object, manifest: VlmManifest) -> Shown | None:
    """Pictures as the encoder takes them, None for none.

    Args:
        images: Pixels or tiles, which may be of one picture alone; or picture files.
        manifest: Of the bundle.

    Raises:
        UsageError: They are of another size, or are files and the bundle does not know how a
            picture becomes an input.
    """
    if images is None:
        return None
    if isinstance(images, (Tensor, Tiles)):
        if isinstance(images, Tensor) and images.dim() == len(manifest.pixels):
            images = images[None]
        check_shown(images, manifest)
        return images
    if manifest.preprocessing is None:
        raise UsageError(
            "this bundle does not know how a picture becomes an input",
            found="no preprocessing in its manifest",
            fix="give pixels as a tensor, or compile with a processor",
        )
    preprocessing = Preprocessing.from_dict(manifest.preprocessing)
    files = [images] if isinstance(images, (str, Path)) else list(images)  # type: ignore[call-overload]
    tiling = manifest.tiling
    if tiling is None:
        return torch.stack([read_picture(Path(file), preprocessing) for file in files])
    return joined([opened(Path(file), lambda p: cut(p, preprocessing, tiling)) for file in files])


def check_shown(images: Shown, manifest: VlmManifest) -> None:
    """Nothing, if a bundle's encoder takes these pictures.

    Raises:
        UsageError: It does not.
    """
    tiling, pixels = manifest.tiling, list(manifest.pixels)
    if tiling is None:
        if not isinstance(images, Tensor) or list(images.shape[1:]) != pixels:
            raise UsageError(
                "pixels of another size than the model takes",
                found=_told(images),
                fix=f"[images, {', '.join(map(str, pixels))}]",
            )
        return
    if not isinstance(images, Tiles):
        raise UsageError(
            "this bundle takes pictures of any size, cut into tiles",
            found=_told(images),
            fix=f"picture files, or vlm.Tiles of pixels [tiles, {', '.join(map(str, pixels))}]",
        )
    right = [sum(map(tiling.tiles, images.sizes)), *pixels]
    if list(images.pixels.shape) != right:
        raise UsageError(
            "tiles do not fit the sizes of their pictures",
            found=_told(images.pixels),
            fix=f"{right} for pictures of {_sizes(images.sizes)}",
        )


def image_tokens(images: Sequence[Shown], manifest: VlmManifest) -> int:
    """N, the tokens of each picture of several prompts.

    Raises:
        UsageError: They have different numbers.
    """
    if manifest.tiling is None or not images:
        return manifest.image_tokens or 1
    sizes = [size for one in images for size in (one.sizes if isinstance(one, Tiles) else ())]
    numbers = {manifest.tiling.tokens(size) for size in sizes}
    if len(numbers) != 1:
        raise UsageError(
            "pictures of one batch must have the same number of tokens",
            found=f"{', '.join(map(str, sorted(numbers)))}, of pictures of {_sizes(sizes)}",
            fix="one batch for each size of picture",
        )
    return numbers.pop()


def cut(picture: Any, preprocessing: Preprocessing, tiling: Tiling) -> Tiles:
    """A PIL image as tiles: the whole of it in one, then the grid that suits it best.

    It is resized to fill the grid in one direction; what is left in the other is black.
    """
    from PIL import Image

    rgb = upright_rgb(picture)
    size = (rgb.height, rgb.width)
    height, width = grid = tiling.grid(size)
    high, wide = fitted(size, grid)
    resized = rgb.resize((wide, high), Image.Resampling[preprocessing.interpolation.upper()])
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, ((width - wide) // 2, (height - high) // 2))
    side = tiling.side
    tiles = preprocessing.normalised(canvas).reshape(3, height // side, side, width // side, side)
    tiles = tiles.permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    return Tiles(torch.cat([preprocessing.apply(rgb)[None], tiles]), (size,))


def fitted(size: Size, grid: Size) -> Size:
    """(height, width) of a picture made as large as a grid holds, proportions kept."""
    down, across = grid[0] / size[0], grid[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), grid[0]), grid[1]
    return grid[0], min(math.ceil(size[1] * down), grid[1])


def _told(images: object) -> str:
    return str(list(images.shape)) if isinstance(images, Tensor) else type(images).__name__


def _sizes(sizes: Sequence[Size]) -> str:
    return ", ".join(f"{height} x {width}" for height, width in dict.fromkeys(sizes))
