"""Patches as a picture: what is gone fades, what was merged has one colour and an outline.

Source: the way of showing merged tokens is that of ToMe (ICLR 2023), figure 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunepass.errors import ModelError
from prunepass.seeing.look import Look
from prunepass.seeing.paths import Stage

_SIDE = 224
"""Pixels of a panel's longer side, about."""
_PAPER = np.array((246, 246, 244), np.float32)
_LINE = (24, 24, 27)
_GAP, _TITLE, _COLUMNS = 12, 22, 4

Pixels = NDArray[np.uint8]


def panel(look: Look, stage: Stage | None, *, side: int = _SIDE) -> Pixels:
    """[h, w, 3]: the picture behind one reduction, or as it came.

    Args:
        look: The picture and its grid.
        stage: Which reduction; None for the picture itself.
        side: Pixels of the longer side, about.
    """
    rows, columns = look.grid
    height, width = look.picture.shape[1:]
    scale = side / max(height, width)
    if stage is None and (rows, columns) == (1, 1):
        return _resized(look.picture, round(height * scale), round(width * scale))
    down = max(3, round(height * scale / rows))
    across = max(3, round(width * scale / columns))
    base = _resized(look.picture, rows * down, columns * across)
    if stage is None:
        return base
    owner = stage.owner.reshape(rows, columns).numpy()
    wide = owner.repeat(down, 0).repeat(across, 1)
    made = base.astype(np.float32)
    made[wide < 0] = 0.12 * made[wide < 0] + 0.88 * _PAPER
    sizes = np.bincount(owner[owner >= 0].ravel(), minlength=1)
    for group in np.flatnonzero(sizes > 1):
        made[wide == group] = made[wide == group].mean(0)
    painted = made.round().astype(np.uint8)
    _outline(painted, wide, sizes)
    return painted


def sheet(look: Look) -> Any:
    """A PIL image: the picture, then what is left of it behind each reduction, with titles."""
    from PIL import Image, ImageDraw, ImageFont

    total = len(look.stages[0].owner) if look.stages else 0
    titles = ["as the model sees it"] + [
        f"{_place(stage.site)}: {left(stage)} of {total}" for stage in look.stages
    ]
    panels = [panel(look, stage) for stage in (None, *look.stages)]
    high, wide = (max(p.shape[axis] for p in panels) for axis in (0, 1))
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (
        columns * (wide + _GAP) + _GAP,
        rows * (high + _TITLE + _GAP) + _GAP,
    )
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    for number, (title, pixels) in enumerate(zip(titles, panels, strict=True)):
        x = _GAP + (number % columns) * (wide + _GAP)
        y = _GAP + (number // columns) * (high + _TITLE + _GAP)
        pen.text((x, y), title, fill=_LINE, font=font)
        canvas.paste(Image.fromarray(pixels), (x, y + _TITLE))
    return canvas


def left(stage: Stage) -> int:
    """How many tokens stand for the patches of a picture behind a reduction."""
    return len(stage.owner[stage.owner >= 0].unique())


def _place(site: str) -> str:
    return site.replace("block[", "block ").replace("].", " ").replace("]", "")


def _resized(picture: Tensor, height: int, width: int) -> Pixels:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError(
            "pictures cannot be drawn without Pillow",
            found=str(error),
            fix='pip install "prunepass[models]"',
        ) from error
    pixels = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(image)


def _outline(painted: Pixels, wide: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Draws lines around the groups of more than one patch, in place."""
    if not (sizes > 1).any():
        return
    many = np.zeros(len(sizes) + 1, bool)
    many[:-1] = sizes > 1
    grouped = many[wide]
    for axis in (0, 1):
        here, there = (np.take(wide, _cut(wide.shape[axis], end), axis) for end in (0, 1))
        mine, other = (np.take(grouped, _cut(wide.shape[axis], end), axis) for end in (0, 1))
        edge = (here != there) & (mine | other)
        y, x = np.nonzero(edge)
        painted[y, x] = _LINE


def _cut(length: int, end: int) -> NDArray[np.int64]:
    """0 .. length - 2, or one more each."""
    return np.arange(length - 1) + end
