"""Grids of patches."""

from __future__ import annotations

import pytest

from prunepass.errors import UsageError
from prunepass.seeing.grid import patch_grid


@pytest.mark.parametrize(
    ("size", "patches", "grid"),
    [((224, 224), 196, (14, 14)), ((24, 30), 20, (4, 5)), ((30, 24), 20, (5, 4)),
     ((96, 96), 1, (1, 1)), ((224, 448), 128, (8, 16))],
)  # fmt: skip
def test_the_shape_of_the_picture_decides(
    size: tuple[int, int], patches: int, grid: tuple[int, int]
) -> None:
    assert patch_grid(*size, patches) == grid


@pytest.mark.parametrize("patches", [197, 0, 24])
def test_what_fills_no_grid_is_refused(patches: int) -> None:
    with pytest.raises(UsageError, match="one grid"):
        patch_grid(224, 224, patches)
