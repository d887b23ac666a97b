"""A bundle looks at a picture, and tells which patches it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunepass.backends.told_tokens import TellingEngine, telling
from prunepass.bundle import Manifest, read_manifest
from prunepass.errors import ModelError, UsageError
from prunepass.report import read_report
from prunepass.seeing.grid import patch_grid
from prunepass.seeing.paths import Stage, stages
from prunepass.sources.pictures import read_picture
from prunepass.sources.preprocess import Preprocessing


@dataclass(frozen=True)
class Look:
    """What became of the patches of one picture.

    Attributes:
        picture: [3, H, W] in 0..1, as the model sees it.
        grid: (rows, columns) of its patches.
        stages: Behind each reduction; owners are of patches alone, row by row.
    """

    picture: Tensor
    grid: tuple[int, int]
    stages: tuple[Stage, ...]


class Looker:
    """The compressed engine of a bundle, asked which patches it keeps.

    Args:
        folder: A bundle of a model of pictures alone.

    Raises:
        ModelError: It is none, or was made before engines could be asked.
        BackendError: Engines of its backend cannot be asked.
        UsageError: The bundle does not know how a picture becomes an input.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = read_manifest(folder)
        self.report = read_report(folder)
        self.preprocessing = _preprocessing(self.manifest)
        self.tokens = {k: (v[0], v[1]) for k, v in self.report.get("tokens", {}).items()}
        self.engine: TellingEngine | None = None
        if not self.tokens:
            return  # Nothing goes: there is nobody to ask.
        self.engine = telling(self.manifest.backend, folder / "compressed")
        if "always_kept" not in self.report or not self.engine.names:
            raise ModelError(
                f"{folder} was compiled before engines could be asked for their tokens",
                found="no names of kept tokens in it",
                fix="compile again; --plan plan.json does the same once more",
            )

    def __call__(self, file: Path) -> Look:
        """What becomes of the patches of a picture file."""
        image = read_picture(file, self.preprocessing)
        picture = as_seen(image, self.preprocessing)
        if self.engine is None:
            return Look(picture, (1, 1), ())
        given = image[None].expand(self.manifest.batch or 1, -1, -1, -1).contiguous()
        found = stages(self.engine(given), self.tokens)
        always = list(self.report["always_kept"])
        patches = [i for i in range(found[0].before) if i not in set(always)]
        grid = patch_grid(picture.shape[1], picture.shape[2], len(patches))
        index = torch.tensor(patches)
        own = (Stage(s.site, s.before, s.after, s.owner[index]) for s in found)
        # Behind the last attention nothing but the class token is read: no patch is left, by right.
        return Look(picture, grid, tuple(s for s in own if (s.owner >= 0).any()))


def as_seen(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[3, H, W] in 0..1: a normalised picture [3, H, W] as a person sees it."""
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return (image * std + mean).clamp(0, 1)


def _preprocessing(manifest: Manifest) -> Preprocessing:
    if manifest.preprocessing is None:
        raise UsageError(
            "the bundle does not say how pictures are prepared",
            found="no preprocessing in bundle.json",
            fix="compile with the command line, or give preprocessing to prunepass.compile",
        )
    return Preprocessing.from_dict(manifest.preprocessing)
