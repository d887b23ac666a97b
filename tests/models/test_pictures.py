"""The generated pictures: same index same picture, balanced classes, one object on a background."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prunepass.models import pictures


def test_one_picture_has_the_promised_types() -> None:
    image, label = pictures.picture(5)
    assert image.shape == (3, 96, 96)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert type(label) is int
    assert 0 <= label < len(pictures.CLASSES)


def test_a_batch_has_the_promised_types() -> None:
    images, labels = pictures.batch([3, 900, 12_345_678_901], size=40)
    assert images.shape == (3, 3, 40, 40)
    assert images.dtype == torch.float32
    assert labels.shape == (3,)
    assert labels.dtype == torch.int64


def test_no_indices_give_an_empty_batch() -> None:
    images, labels = pictures.batch([])
    assert images.shape == (0, 3, 96, 96)
    assert labels.shape == (0,)


def test_a_picture_does_not_depend_on_its_batch() -> None:
    order = np.random.default_rng(1).permutation(40)
    images, labels = pictures.batch(order)
    for place in (0, 17, 39):
        image, label = pictures.picture(int(order[place]))
        assert torch.equal(image, images[place])
        assert label == labels[place]


def test_pictures_stay_as_they_are_while_the_version_does() -> None:
    """Shipped weights belong to one version of the generator."""
    pixels, coverage, labels = pictures.draw(range(36), size=32)
    assert pictures.GENERATOR_VERSION == 1
    assert labels[:12].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]
    # Not to the bit: cosines may differ in their last digit from processor to processor.
    assert pixels.mean() == pytest.approx(131.4833, abs=1e-3)
    assert pixels[7, :, 16, 16].tolist() == pytest.approx([117, 116, 114], abs=1)
    assert coverage.mean() == pytest.approx(0.061716, abs=1e-5)


def test_every_run_of_twelve_holds_each_class_once() -> None:
    _, _, labels = pictures.draw(range(240), size=16)
    for run in labels.reshape(-1, 12):
        assert sorted(run) == list(range(12))
    assert len({tuple(run) for run in labels.reshape(-1, 12)}) > 5  # not always the same order


def test_pictures_of_different_indices_differ() -> None:
    pixels, _, _ = pictures.draw([*range(150), *range(1_000_000, 1_000_150)], size=32)
    assert len({image.tobytes() for image in pixels}) == 300


def test_the_object_takes_a_small_part_of_the_picture() -> None:
    _, coverage, _ = pictures.draw(range(240))
    assert coverage.min() == 0
    assert coverage.max() == 1
    share = coverage.mean((1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.2
    assert 0.04 < share.mean() < 0.12


def test_the_object_lies_inside_the_picture_and_anywhere_in_it() -> None:
    _, coverage, _ = pictures.draw(range(480))
    edges = coverage[:, [0, -1], :].sum() + coverage[:, :, [0, -1]].sum()
    assert edges / coverage.sum() < 1e-3
    mean = coverage.mean(0)
    for quarter in (mean[:48, :48], mean[:48, 48:], mean[48:, :48], mean[48:, 48:]):
        assert 0.2 < quarter.sum() / mean.sum() < 0.3


def test_object_and_background_differ_but_no_colour_gives_the_class_away() -> None:
    pixels, coverage, labels = pictures.draw(range(1200), size=48)
    images = pixels.astype(np.float64) / 255
    inside = coverage[:, None]
    ground = 1 - inside
    object_colour = (images * inside).sum((2, 3)) / inside.sum((2, 3))
    ground_colour = (images * ground).sum((2, 3)) / ground.sum((2, 3))
    plain = labels < pictures.CLASSES.index("striped_disc")
    contrast = np.abs((object_colour - ground_colour).mean(1))[plain]
    assert np.median(contrast) > 0.2
    by_class = np.stack([object_colour[labels == label].mean(0) for label in range(12)])
    assert np.abs(by_class - object_colour.mean(0)).max() < 0.1


def test_pixels_are_spread_over_the_range() -> None:
    images, _ = pictures.batch(range(120), size=48)
    assert 0.4 < images.mean() < 0.6
    assert 0.1 < images.std() < 0.3


@pytest.mark.parametrize("size", [16, 33, 96])
def test_any_size_shows_the_same_object_in_the_same_place(size: int) -> None:
    _, coverage, labels = pictures.draw(range(24), size=size)
    _, wanted, wanted_labels = pictures.draw(range(24), size=96)
    assert np.array_equal(labels, wanted_labels)
    # The sampling error of a mean over pixels shrinks with their number.
    assert np.abs(coverage.mean((1, 2)) - wanted.mean((1, 2))).max() < 0.25 / size


@pytest.mark.parametrize(
    ("indices", "size", "message"), [([4, -1], 96, "found -1"), ([4], 15, "size=15")]
)
def test_impossible_requests_are_refused(indices: list[int], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pictures.batch(indices, size=size)


def test_a_folder_holds_the_same_pixels_under_names_that_tell_the_class(tmp_path: Path) -> None:
    paths = pictures.write_folder(tmp_path / "new", 14, start=250, size=32)
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    images, labels = pictures.batch(range(250, 264), size=32)
    for path, index, image, label in zip(paths, range(250, 264), images, labels, strict=True):
        assert path.name == f"{label:04d}_{pictures.CLASSES[label]}_{index}.png"
        assert int(path.name.split("_")[0]) == label
        stored = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert torch.equal(stored, (image * 255).round().to(torch.uint8))
