"""Smaller pictures, in a form that is fast and the same in every engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunepass.rules.precision import like, widen


def shrinking(size: int, smaller: int) -> Tensor:
    """[smaller, size]: one axis of a resampling with antialiasing, as a matrix, float32.

    Resampling is linear and goes by rows and columns, so as two products it is the same in every
    engine; not all of them resample with antialiasing, and some take longer over it than a small
    model over the picture.
    """
    return nn.functional.interpolate(
        torch.eye(size)[None, None], size=(smaller, size), mode="bicubic", antialias=True
    )[0, 0]


def shrink(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[I, 3, h, w] of pictures [I, 3, H, W].

    Args:
        pixels: The pictures.
        rows: [h, H], see `shrinking`.
        columns: [w, W].
    """
    wide = widen(pixels)
    return like(like(rows, wide) @ wide @ like(columns, wide).T, pixels)
