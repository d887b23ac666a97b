"""A folder of labelled pictures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from prunepass.errors import ModelError, UsageError, first_line
from prunepass.sources.preprocess import Preprocessing

Made = TypeVar("Made")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NO_LABEL = -1
"""Class number of a picture whose class nobody knows."""
LAYOUTS = "NUMBER_anything.jpg beside each other, or one subfolder a class; not both"


@dataclass(frozen=True)
class Pictures:
    """Picture files and their class numbers, in a fixed order; opened only when read."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise UsageError(
                "every picture has one label",
                found=f"{len(self.paths)} pictures, {len(self.labels)} labels",
                fix="find_pictures(folder)",
            )

    def __len__(self) -> int:
        return len(self.paths)

    def batches(
        self, preprocessing: Preprocessing, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, H, W] (float32, prepared) and labels [B] (int64), the last batch smaller.

        Raises:
            ModelError: a picture cannot be read.
            UsageError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise UsageError("a batch has one picture or more", found=str(batch_size), fix="1")
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            images = torch.stack([read_picture(path, preprocessing) for path in self.paths[part]])
            yield images, torch.tensor(self.labels[part], dtype=torch.int64)

    def take(self, count: int) -> Pictures:
        """The first `count` pictures, or all where there are fewer. They stand in file order,
        mostly one class after the other: `split` gives a shuffled part.

        Raises:
            UsageError: `count` is below 1.
        """
        if count < 1:
            raise UsageError("a part has one picture or more", found=str(count), fix="1")
        return Pictures(self.paths[:count], self.labels[:count])

    def split(self, first: int | float, *, seed: int = 0) -> tuple[Pictures, Pictures]:
        """Two parts without a common picture, shuffled: one to fit on and one that is unseen.

        Args:
            first: Size of the first part: a count (int), or a share (float) between 0 and 1.
            seed: Of the shuffle; the same seed gives the same parts.

        Raises:
            UsageError: one of the parts would be empty.
        """
        count = first if isinstance(first, int) else round(first * len(self))
        if not 0 < count < len(self):
            raise UsageError(
                "a split leaves pictures on both sides",
                found=f"{first!r} of {len(self)} pictures",
                fix=f"a count from 1 to {len(self) - 1}, or a share such as 0.5"
                if len(self) > 1
                else "a folder with two pictures or more",
            )
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return self._part(order[:count]), self._part(order[count:])

    def _part(self, indices: list[int]) -> Pictures:
        return Pictures(
            tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices)
        )


def find_pictures(folder: Path | str, *, labelled: bool = True) -> Pictures:
    """The labelled pictures of a folder, in the order of their names.

    A class number is what stands before the first `_` of a file name, or, where the pictures lie
    in subfolders, the position of the subfolder among all subfolders in the order of names.
    Names that begin with a dot are passed over.

    Args:
        folder: Where they lie.
        labelled: Whether each must have a class number; else all have -1 where one has none.

    Raises:
        ModelError: the folder is missing, unreadable or has no pictures, its layout is mixed, or
            a file name has no class number.
    """
    folder = Path(folder)
    entries = _entries(folder)
    pictures = [entry for entry in entries if _is_picture(entry)]
    classes = [entry for entry in entries if entry.is_dir()]
    inside = [[p for p in _entries(name) if _is_picture(p)] for name in classes]
    if pictures and any(inside):
        nested = next(part[0] for part in inside if part)
        raise ModelError(
            f"the pictures in {folder} lie in two layouts at once",
            found=f"{pictures[0].name} and {nested.relative_to(folder)}",
            fix=LAYOUTS,
        )
    if pictures:
        if not labelled and not all(_numbered(path) for path in pictures):
            return Pictures(tuple(pictures), (NO_LABEL,) * len(pictures))
        return Pictures(tuple(pictures), tuple(_number(path) for path in pictures))
    if not any(inside):
        raise ModelError(
            f"no pictures in {folder}",
            found=f"{len(entries)} entries, none of them {' '.join(SUFFIXES)}",
            fix=LAYOUTS,
        )
    found = [(path, label) for label, part in enumerate(inside) for path in part]
    return Pictures(tuple(path for path, _ in found), tuple(label for _, label in found))


def read_picture(path: Path, preprocessing: Preprocessing) -> Tensor:
    """One prepared picture [3, H, W], float32.

    Raises:
        ModelError: the file is missing, truncated or no picture, or Pillow is not installed.
    """
    return opened(path, preprocessing.apply)


def opened(path: Path, use: Callable[[Any], Made]) -> Made:
    """What `use` makes of the PIL image in a file.

    Raises:
        ModelError: the file is missing, truncated or no picture, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError(
            "pictures cannot be read without Pillow",
            found=str(error),
            fix='pip install "prunepass[models]"',
        ) from error
    try:
        with Image.open(path) as picture:
            return use(picture)
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no picture {path}", found="nothing at that path", fix="an existing file"
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
        size = f"{path.stat().st_size} bytes; " if path.is_file() else ""
        raise ModelError(
            f"cannot read the picture {path}",
            found=f"{size}{type(error).__name__}: {first_line(error)}",
            fix="remove the file or replace it with a whole picture",
        ) from error


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of names."""
    try:
        found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ModelError(
            f"cannot read the picture folder {folder}",
            found=error.strerror or str(error),
            fix="--images FOLDER with " + LAYOUTS,
        ) from error
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _numbered(path: Path) -> bool:
    """Whether a file name begins with a class number."""
    before, underscore, _ = path.name.partition("_")
    return bool(underscore) and before.isascii() and before.isdigit()


def _number(path: Path) -> int:
    """The class number in a file name."""
    before, underscore, _ = path.name.partition("_")
    if not _numbered(path):
        raise ModelError(
            f"no class number in the file name {path.name}",
            found=f"{before!r} before the first underscore" if underscore else "no underscore",
            fix=f"names such as 0007_{path.name}, or one subfolder a class",
        )
    return int(before)
