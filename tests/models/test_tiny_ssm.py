"""The small state-space models: the shipped weights fit and do what their records say."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prunepass.models import catalogue, tiny_ssm

from tests.data import shared_data
from tests.models.shipped import check_weights

NAMES = ("tiny_vim_32", "tiny_plain_mamba_32")


def archive() -> Path | None:
    data = shared_data()
    path = None if data is None else data / "cifar10-jpeg.tar.gz"
    return path if path is not None and path.is_file() else None


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_float16_and_fit_strictly(name: str) -> None:
    card = catalogue.catalogue()[name]
    assert card.weights is not None
    check_weights(catalogue.WEIGHTS_FOLDER / card.weights, set(card.build().state_dict()))


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_of_a_model_that_learned(name: str) -> None:
    record = json.loads((catalogue.WEIGHTS_FOLDER / f"{name}.json").read_text())
    assert record["accuracy"] >= 0.70
    assert record["parameters"] == sum(p.numel() for p in catalogue.load(name).parameters())


@pytest.mark.slow
@pytest.mark.skipif(archive() is None, reason="no cifar10-jpeg.tar.gz; set PRUNEPASS_DATA")
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_unseen_pictures_is_the_recorded_one(name: str) -> None:
    recorded = json.loads((catalogue.WEIGHTS_FOLDER / f"{name}.json").read_text())["accuracy"]
    images, labels = unseen(1000)
    with torch.no_grad():
        said = catalogue.load(name)(images).argmax(1)
    found = float((said == labels).float().mean())
    # Three standard errors of a share among 1000.
    assert found == pytest.approx(recorded, abs=3 * (0.25 / len(labels)) ** 0.5)


def unseen(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 3, 32, 32] pictures of the test part as the models take them, and their classes [N]."""
    path, found = archive(), []
    assert path is not None
    with tarfile.open(path) as files:
        for member in files:
            place = Path(member.name).parts
            if "test" in place and member.name.endswith(".jpg"):
                stream = files.extractfile(member)
                assert stream is not None
                found.append((stream.read(), tiny_ssm.CLASSES.index(place[-2])))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1))[:count]
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(found[i][0])).convert("RGB")) for i in order]
    )
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_ssm.MEAN, tiny_ssm.STD))
    return (x - mean) / std, torch.tensor([found[i][1] for i in order])
