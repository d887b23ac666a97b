"""The tiny ViT: its geometry, and that the shipped weights do what their record says."""

import json

import pytest
import torch
from prunepass.models import catalogue, pictures
from prunepass.models.tiny_vit import tiny_vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.models.shipped import check_unseen, check_weights

CARD = catalogue.catalogue()["tiny_vit_patch8_96"]
FRESH = range(500_000, 500_200)  # in neither the training pictures nor the recorded held-out ones


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    text = (catalogue.WEIGHTS_FOLDER / f"{CARD.name}.json").read_text()
    loaded: dict[str, object] = json.loads(text)
    return loaded


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return catalogue.load(CARD.name)


def _normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor(CARD.mean), torch.tensor(CARD.std)
    return (images - mean[:, None, None]) / std[:, None, None]


def test_geometry() -> None:
    model = tiny_vit()
    assert isinstance(model, VisionTransformer)
    assert model.pos_embed is not None
    assert sum(weight.numel() for weight in model.parameters()) == 1_631_372
    assert model.pos_embed.shape == (1, 145, 128)
    assert model.num_prefix_tokens == 1
    assert len(model.blocks) == 8
    assert model.global_pool == "token"
    assert model(torch.rand(2, 3, 96, 96)).shape == (2, len(pictures.CLASSES))


def test_weights_are_float16_and_fit_strictly() -> None:
    assert CARD.weights is not None
    check_weights(catalogue.WEIGHTS_FOLDER / CARD.weights, set(tiny_vit().state_dict()))


def test_the_record_names_pictures_that_were_not_trained_on(record: dict[str, object]) -> None:
    check_unseen(record, FRESH)
    assert record["picture_generator_version"] == pictures.GENERATOR_VERSION


def test_accuracy_on_fresh_pictures_is_near_the_recorded_one(
    record: dict[str, object], trained: nn.Module
) -> None:
    recorded = record["accuracy"]
    assert isinstance(recorded, float)
    assert 0.85 < recorded < 1.0
    images, labels = pictures.batch(FRESH)
    with torch.no_grad():
        answers = trained(_normalised(images)).argmax(1)
    assert (answers == labels).double().mean() >= recorded - 0.04


def test_the_object_is_what_counts(trained: nn.Module) -> None:
    """Greying the object out ruins the answer; greying as many far pixels out does not."""
    pixels, coverage, labels = pictures.draw(range(FRESH.start, FRESH.start + 60))
    images = torch.from_numpy(pixels).float() / 255
    patches = torch.from_numpy(coverage).unfold(1, 8, 8).unfold(2, 8, 8).amax((3, 4)) > 0
    far = torch.stack([_elsewhere(mask) for mask in patches])
    grey = images.mean((2, 3), keepdim=True)

    def accuracy(hidden: Tensor) -> float:
        hidden = hidden.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        with torch.no_grad():
            logits = trained(_normalised(torch.where(hidden, grey, images)))
        return float((logits.argmax(1) == torch.from_numpy(labels)).double().mean())

    assert accuracy(patches) < 0.3
    assert accuracy(far) > 0.7


def _elsewhere(object_patches: Tensor) -> Tensor:
    """As many patches [12, 12] as the object touches, none of them touched by it."""
    free = (~object_patches).flatten().nonzero()[:, 0]
    chosen = torch.zeros(object_patches.numel(), dtype=torch.bool)
    chosen[free[::2][: int(object_patches.sum())]] = True
    return chosen.reshape(object_patches.shape)
