"""The baseline that prunes nothing: the encoder is shown a smaller picture.

Pictures come in at the size they always had. They are shrunk inside the graph, to whole cells: a
cell is what one image token shows.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.errors import PlanError, UnsupportedGraph, first_line
from prunepass.plans import Plain
from prunepass.rules.shrink import shrink, shrinking
from prunepass.vlm.patches import Pictures, pictures_of
from prunepass.vlm.split import split


def downsampled(
    model: nn.Module,
    pictures: Pictures,
    *,
    image_tokens: int,
    share: float,
    options: Mapping[str, Plain] | None = None,
) -> Pictures:
    """The pictures of a model whose encoder sees them smaller.

    Args:
        model: An image-text-to-text model of transformers.
        pictures: What it takes.
        image_tokens: How many tokens it makes of one.
        share: Of them, how many are to be left at most, in (0, 1].
        options: None, as there are none.

    Raises:
        PlanError: An option is given.
        UnsupportedGraph: The model's encoder takes no smaller picture.
    """
    if options:
        raise PlanError("downsample has no options", found=", ".join(options), fix="leave them out")
    grid = cells(pictures.pixels, image_tokens)
    shrunk = takes_smaller(model, pictures)
    if grid is None or shrunk is None:
        raise _refusal(model, "its pictures come as tiles, or have one size that is built in")
    size = (pictures.pixels[1], pictures.pixels[2])
    small = smaller_grid(grid, share)
    side = (small[0] * size[0] // grid[0], small[1] * size[1] // grid[1])
    if side == size:
        return pictures
    inner = shrunk(side)
    rows, columns = (shrinking(a, b) for a, b in zip(size, side, strict=True))
    found = dataclasses.replace(
        inner,
        pixels=pictures.pixels,
        inputs=lambda pixels: inner.inputs(shrink(pixels, rows, columns)),
    )
    _check_runs(model, found, small[0] * small[1])
    return found


def cells(pixels: tuple[int, ...], image_tokens: int) -> tuple[int, int] | None:
    """(rows, columns) of the square cells that a picture's tokens show; None where they are none.

    Args:
        pixels: [3, H, W] of a picture.
        image_tokens: Of one picture.
    """
    if len(pixels) != 3:
        return None
    height, width = pixels[1:]
    side = math.isqrt(height * width // image_tokens)
    if not side or height % side or width % side:
        return None
    grid = (height // side, width // side)
    return grid if grid[0] * grid[1] == image_tokens else None


def smaller_grid(grid: tuple[int, int], share: float) -> tuple[int, int]:
    """(rows, columns) of about the same proportions with at most a share of the cells; >= 1 x 1."""
    rows, columns = grid
    most = share * rows * columns + 1e-9
    found = [
        (r, c)
        for r in range(1, rows + 1)
        for c in {math.floor(r * columns / rows), math.ceil(r * columns / rows)}
        if c >= 1 and r * c <= most
    ]
    return max(
        found, key=lambda g: (g[0] * g[1], -abs(g[0] * columns - g[1] * rows)), default=(1, 1)
    )


def takes_smaller(
    model: nn.Module, pictures: Pictures
) -> Callable[[tuple[int, int]], Pictures] | None:
    """From (height, width) to what the encoder takes of pictures of that size; None for none."""
    if pictures.grid is not None:
        return lambda size: pictures_of(model, size)
    tower: Any = getattr(getattr(model, "model", model), "vision_tower", None)
    takes = {} if tower is None else inspect.signature(tower.forward).parameters
    if pictures.known or pictures.leaves_out or "interpolate_pos_encoding" not in takes:
        return None

    def inputs(pixels: Tensor) -> dict[str, Any]:
        return {**pictures.inputs(pixels), "interpolate_pos_encoding": True}

    return lambda _: dataclasses.replace(pictures, inputs=inputs)


@torch.no_grad()
def _check_runs(model: nn.Module, pictures: Pictures, image_tokens: int) -> None:
    """Nothing, if the encoder makes so many tokens of a smaller picture."""
    pixels = pictures.examples(next(model.parameters()).dtype)[:1]
    try:
        found = int(split(model, pictures).vision(pixels).shape[1])
    except Exception as error:
        raise _refusal(model, first_line(error, most=200)) from error
    if found != image_tokens:
        raise _refusal(model, f"it makes {found} tokens of {image_tokens} cells")


def _refusal(model: nn.Module, found: str) -> UnsupportedGraph:
    return UnsupportedGraph(
        f"the encoder of {type(model).__name__} takes no smaller picture",
        found=found,
        fix="divprune or another method; downsample is for encoders that interpolate their "
        "positions, such as LLaVA's, and for those of any size, such as Qwen2-VL's",
    )
