"""The pictures of CIFAR-10 that the small state-space models are trained on and measured with."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from prunepass.models import tiny_ssm
from torch import Tensor


def read(archive: Path, part: str) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 32, 32] uint8 and class numbers [N] of one part, `train` or `test`."""
    pictures, labels = [], []
    with tarfile.open(archive) as files:
        for member in files:
            place = Path(member.name).parts
            if part not in place or not member.name.endswith(".jpg"):
                continue
            stream = files.extractfile(member)
            assert stream is not None
            pictures.append(np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB")))
            labels.append(tiny_ssm.CLASSES.index(place[-2]))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor(labels)


def normalised(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, 32, 32] uint8 as the models take them."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_ssm.MEAN, tiny_ssm.STD))
    return (pictures.float() / 255 - mean) / std


def mixed(archive: Path, *, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` test pictures as the models take them and their classes, in a mixed order."""
    pictures, labels = read(archive, "test")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    return normalised(pictures[order]), labels[order]
