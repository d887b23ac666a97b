"""How pictures of one size become what the encoder of a vision-language model takes.

Encoders differ in that: pictures as they are; pictures cut into flat patches, with their grid
beside them; tiles of a large picture, with its size beside them. Which of these a model wants is
read from the arguments of its `get_image_features`. What depends on the size of a picture alone is
worked out here, so that an exported encoder holds it as numbers.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.errors import UnsupportedGraph, UsageError
from prunepass.vlm.tiles import Size, Tiling

ImageSize = int | tuple[int, int]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a bundle.

    Attributes:
        pixels: Of one picture: [3, H, W], or [tiles, 3, H, W] where it comes as tiles.
        inputs: Pictures [I, ...pixels] to what the model takes of them, by name.
        grid: (rows, columns) of a picture's tokens where positions are of time, row and column.
        known: What the encoder would work out of the size of a picture, by name: numbers.
        alone: Whether the encoder is captured for one picture at a time.
        leaves_out: Whether the model leaves out pictures that are all zeros, which no program can.
        tiling: How pictures of any size are cut into tiles, where the encoder is made for that; all
            else here is of an example.
        size: (height, width) of pictures that come as tiles.
    """

    pixels: tuple[int, ...]
    inputs: Callable[[Tensor], dict[str, Tensor]]
    grid: tuple[int, int] | None = None
    known: Mapping[str, Any] | None = None
    alone: bool = False
    leaves_out: bool = False
    tiling: Tiling | None = None
    size: Size | None = None

    def examples(self, dtype: torch.dtype) -> Tensor:
        """Two random pictures."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, *self.pixels, generator=generator).to(dtype)

    def encoder_inputs(self, pixels: Tensor) -> Tensor:
        """What an encoder takes of pictures [I, ...pixels]: them, or all of their tiles."""
        return pixels if self.tiling is None else pixels.flatten(0, 1)

    def features(self, encoder: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Image tokens [I, N, C] of pictures [I, ...pixels]."""
        found = encoder(self.encoder_inputs(pixels))
        if self.tiling is None:
            return found
        assert self.size is not None
        return self.tiling.packed(found, [self.size] * len(pixels))


def pictures_of(model: nn.Module, image_size: ImageSize | None = None) -> Pictures:
    """The pictures that a model is compiled for.

    Args:
        model: An image-text-to-text model of transformers.
        image_size: (height, width), or both as one number; None for what the config says, which
            may be any size.

    Raises:
        UsageError: The model takes pictures of any size and `image_size` does not name one, or it
            names one that the model cannot take.
        UnsupportedGraph: The config does not tell how pictures are cut up.
    """
    config: Any = model.config
    vision: Any = getattr(config, "vision_config", None)
    inner = getattr(model, "model", model)
    takes = getattr(inner, "get_image_features", None)
    wanted = set(inspect.signature(takes).parameters) if takes is not None else set()
    if "image_grid_thw" in wanted:
        return _patches(vision, _named(model, image_size), inner)
    own = _pair(getattr(vision, "image_size", None))
    if "image_sizes" in wanted and getattr(config, "image_grid_pinpoints", None):
        # Some take fewer tokens of a picture with many tiles; those need to know its size.
        if image_size is None and not hasattr(config, "vision_aspect_ratio"):
            return _any_size(config, own)
        return _tiles(config, own, _named(model, image_size))
    size = _pair(image_size) or own
    if size is None:
        raise UnsupportedGraph(
            f"the config of {type(model).__name__} lacks what a bundle needs",
            found="no vision_config.image_size",
            fix="a model whose pictures have one size, or image_size=(height, width)",
        )
    if "image_sizes" in wanted and getattr(vision, "model_type", "") == "pixtral":
        return _sized((3, *size), size)
    if own is not None and size != own:
        raise UsageError(
            f"{type(model).__name__} takes pictures of {own[0]} x {own[1]}",
            found=f"image_size={size}",
            fix="leave image_size out",
        )
    if "pixel_attention_mask" in wanted:  # a prompt's pictures lie along an axis of their own
        return Pictures((3, *size), lambda pixels: {"pixel_values": pixels[None]}, leaves_out=True)
    return Pictures((3, *size), lambda pixels: {"pixel_values": pixels})


def flat_patches(pixels: Tensor, *, patch: int, merge: int, frames: int) -> Tensor:
    """[I rows columns, 3 frames patch patch] of pictures [I, 3, H, W].

    Patches that become one token stand together: blocks of merge x merge patches, from left to
    right and top to bottom, and so within a block. A picture is a film of `frames` equal frames.
    """
    images, colors, height, width = pixels.shape
    rows, columns = height // (merge * patch), width // (merge * patch)
    cut = pixels.reshape(images, colors, rows, merge, patch, columns, merge, patch)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    cut = cut.expand(*cut.shape[:6], frames, patch, patch)
    return cut.reshape(-1, colors * frames * patch * patch)


def _patches(vision: Any, size: tuple[int, int], inner: nn.Module) -> Pictures:
    numbers = {
        name: getattr(vision, name, None)
        for name in ("patch_size", "spatial_merge_size", "temporal_patch_size")
    }
    missing = [name for name, number in numbers.items() if not isinstance(number, int)]
    if missing:
        raise UnsupportedGraph(
            "cannot tell how the encoder cuts pictures into patches",
            found=f"vision_config has no {', '.join(missing)}",
            fix="a model of the Qwen2-VL line",
        )
    patch, merge, frames = (int(number or 1) for number in numbers.values())
    _check_multiple(size, patch * merge)
    height, width = size[0] // patch, size[1] // patch

    def inputs(pixels: Tensor) -> dict[str, Tensor]:
        grid = torch.tensor([[1, height, width]]).expand(len(pixels), 3).contiguous()
        flat = flat_patches(pixels, patch=patch, merge=merge, frames=frames)
        return {"pixel_values": flat, "image_grid_thw": grid}

    return Pictures(
        (3, *size), inputs, grid=(height // merge, width // merge),
        known=_known_of_grid(vision, inner, height, width), alone=True,
    )  # fmt: skip


def _known_of_grid(vision: Any, inner: nn.Module, height: int, width: int) -> dict[str, Any]:
    """What a tower makes of a grid, with the names by which it takes them as given.

    Boundaries are numpy's arrays: a tower asks for their numbers, which a tensor that is being
    captured cannot tell.
    """
    try:
        from transformers import vision_utils
    except ImportError as error:
        raise UnsupportedGraph(
            "this version of transformers does not let an encoder be given its grid",
            found="no transformers.vision_utils",
            fix="pip install -U transformers",
        ) from error
    tower: Any = getattr(inner, "visual", None)
    grid = torch.tensor([[1, height, width]])
    merge = vision.spatial_merge_size
    known: dict[str, Any] = {
        "image_grid_thw": grid.numpy(),
        "cu_seqlens": vision_utils.get_vision_cu_seqlens(grid).numpy(),
        "position_ids": vision_utils.get_vision_position_ids(grid, merge),
    }
    if hasattr(tower, "fullatt_block_indexes"):
        index, bounds = vision_utils.get_vision_window_index(
            grid, merge, vision.window_size, vision.patch_size
        )
        known |= {"window_index": index, "cu_window_seqlens": bounds.numpy()}
    if hasattr(tower, "num_grid_per_side"):
        known["interp_indices"], known["interp_weights"] = (
            vision_utils.get_vision_interpolation_indices_and_weights(
                grid, tower.num_grid_per_side, mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners, spatial_merge_size=merge,
            )
        )  # fmt: skip
    return known


def _tiles(config: Any, side: Size | None, size: Size) -> Pictures:
    tiling = _tiling(config, side)
    return _sized((tiling.tiles(size), 3, tiling.side, tiling.side), size)


def _any_size(config: Any, side: Size | None) -> Pictures:
    """Pictures of any size; the example fills half of the smallest grid."""
    tiling = _tiling(config, side)
    height, width = min(tiling.grids, key=lambda grid: grid[0] * grid[1])
    return dataclasses.replace(_tiles(config, side, (height // 2, width)), tiling=tiling)


def _tiling(config: Any, side: Size | None) -> Tiling:
    if side is None or side[0] != side[1]:
        raise UnsupportedGraph(
            "cannot tell the size of a tile",
            found=f"vision_config.image_size {side}",
            fix="image_size=(height, width)",
        )
    grids = tuple((int(height), int(width)) for height, width in config.image_grid_pinpoints)
    return Tiling(side[0], side[0] // int(config.vision_config.patch_size), grids)


def _sized(pixels: tuple[int, ...], size: Size) -> Pictures:
    """Pictures with their own size beside them."""
    sizes = torch.tensor([size])

    def inputs(given: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": given, "image_sizes": sizes.expand(len(given), 2)}

    return Pictures(pixels, inputs, known={"image_sizes": sizes.numpy()}, alone=True, size=size)


def _named(model: nn.Module, image_size: ImageSize | None) -> tuple[int, int]:
    size = _pair(image_size)
    if size is None:
        raise UsageError(
            f"{type(model).__name__} takes pictures of any size, a bundle of one",
            found="no image_size",
            fix="image_size=(height, width)",
        )
    return size


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UsageError(
            "a picture has at least one pixel", found=f"image_size={size}", fix="image_size=336"
        )
    return int(height), int(width)


def _check_multiple(size: tuple[int, int], cell: int) -> None:
    if size[0] % cell or size[1] % cell:
        near = tuple(max(1, round(side / cell)) * cell for side in size)
        raise UsageError(
            f"height and width must be multiples of {cell}, what one image token shows",
            found=f"image_size={size}",
            fix=f"image_size={near}",
        )
