"""The small state-space models: the shipped weights fit and do what their records say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from prunepass.models import catalogue

from tests.data import shared_data
from tests.models.shipped import check_weights
from tests.scripts.loading import loaded

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
    path = archive()
    assert path is not None
    images, labels = loaded("cifar.py").mixed(path, seed=1, count=1000)
    with torch.no_grad():
        said = catalogue.load(name)(images).argmax(1)
    found = float((said == labels).float().mean())
    # Three standard errors of a share among 1000.
    assert found == pytest.approx(recorded, abs=3 * (0.25 / len(labels)) ** 0.5)
