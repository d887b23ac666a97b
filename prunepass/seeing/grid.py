"""How the patches of a picture lie."""

from __future__ import annotations

import math

from prunepass.errors import UsageError

_LIMIT = 0.35
"""How far, as a logarithm, the shape of a grid may be from the shape of its picture."""


def patch_grid(height: int, width: int, patches: int) -> tuple[int, int]:
    """(rows, columns) of the patches of a picture: the grid whose shape is nearest to its own.

    Args:
        height: Of the picture, pixels.
        width: Of the picture, pixels.
        patches: How many there are.

    Raises:
        UsageError: So many fill no grid of about that shape.
    """
    grids = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    away = {
        (rows, columns): abs(math.log(rows / columns) - math.log(height / width))
        for rows, columns in grids
    }
    best = min(away, key=lambda grid: away[grid], default=None)
    if best is None or away[best] > _LIMIT:
        raise UsageError(
            "the tokens of this model do not lie on one grid of patches",
            found=f"{patches} tokens for a picture of {height} x {width}",
            fix="a model that cuts its picture into one grid",
        )
    return best
