"""Pictures of any size as tiles of one size, and which of the tiles' tokens a model reads.

The large picture is resized, keeping its proportions, to the best of some grids of tiles and
padded there; the whole picture, squeezed into one tile, goes in front. The tokens of the first
tile come first, then those of the grid row by row without the padding, each row with a newline
behind it.

Source: LLaVA-NeXT (2024), dynamic high resolution; where rounding decides, as transformers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Tiles:
    """Pictures of one prompt, cut into tiles.

    Attributes:
        pixels: [K, 3, S, S], the tiles of the first picture, then those of the next; of each
            picture the whole one first.
        sizes: (height, width) of each picture before it was cut.
    """

    pixels: Tensor
    sizes: tuple[Size, ...]

    def __len__(self) -> int:
        return len(self.sizes)


def joined(pictures: Sequence[Tiles]) -> Tiles:
    """The pictures of several prompts as those of one."""
    sizes = tuple(size for picture in pictures for size in picture.sizes)
    return Tiles(torch.cat([picture.pixels for picture in pictures]), sizes)


@dataclass(frozen=True)
class Tiling:
    """How a model cuts pictures into tiles.

    Attributes:
        side: S, pixels of a tile.
        patches: Tokens a side of a tile.
        grids: (height, width) in pixels of the grids of tiles that there are.
    """

    side: int
    patches: int
    grids: tuple[Size, ...]

    def grid(self, size: Size) -> Size:
        """The grid of a picture: the one that shows most of its pixels, of those the smallest."""
        height, width = size

        def worth(grid: Size) -> tuple[int, int]:
            scale = min(grid[1] / width, grid[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - grid[0] * grid[1]

        return max(self.grids, key=worth)

    def tiles(self, size: Size) -> int:
        """K, the tiles of a picture."""
        height, width = self.grid(size)
        return 1 + (height // self.side) * (width // self.side)

    def shown(self, size: Size) -> Size:
        """(rows, columns) of the grid's tokens that are no padding."""
        (rows, columns), (height, width) = self._cells(size), size
        if width * rows > height * columns:
            return rows - 2 * ((rows - height * columns // width) // 2), columns
        return rows, columns - 2 * ((columns - width * rows // height) // 2)

    def tokens(self, size: Size) -> int:
        """N, the tokens of a picture: the first tile, and the grid with a newline a row."""
        rows, columns = self.shown(size)
        return self.patches**2 + rows * (columns + 1)

    def order(self, size: Size) -> Tensor:
        """[N] int64: where the tokens of a picture stand among those of its tiles.

        Each tile has its patches, row by row, and one newline behind them.
        """
        (rows, columns), (high, wide), patches = self._cells(size), self.shown(size), self.patches
        row = torch.arange(high) + (rows - high) // 2
        column = torch.arange(wide) + (columns - wide) // 2
        tile = 1 + (row // patches)[:, None] * (columns // patches) + column // patches
        place = (row % patches)[:, None] * patches + column % patches
        cells = tile * (patches**2 + 1) + place
        newline = torch.full((high, 1), patches**2)
        return torch.cat([torch.arange(patches**2), torch.cat([cells, newline], 1).flatten()])

    def packed(self, features: Tensor, sizes: Sequence[Size]) -> Tensor:
        """[I, N, C]: the tokens of I pictures, which must have the same number of them.

        Args:
            features: [K, P P + 1, C], the tokens of their tiles, a newline behind those of each.
            sizes: Of the pictures.
        """
        counts = [self.tiles(size) for size in sizes]
        parts = features.split(counts)
        found = [
            part.flatten(0, 1)[self.order(size).to(part.device)]
            for part, size in zip(parts, sizes, strict=True)
        ]
        return torch.stack(found)

    def _cells(self, size: Size) -> Size:
        height, width = self.grid(size)
        return height // self.side * self.patches, width // self.side * self.patches
