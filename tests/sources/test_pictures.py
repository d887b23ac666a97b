"""Folders of pictures: labels from names or subfolders, and every way they can be wrong."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from prunepass.errors import ModelError, UsageError
from prunepass.sources.pictures import Pictures, find_pictures
from prunepass.sources.preprocess import Preprocessing

SMALL = Preprocessing(height=8, width=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def draw(path: Path, colour: tuple[int, int, int] = (255, 0, 0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(path)
    return path


def test_labels_from_file_names(tmp_path: Path) -> None:
    for name in ("0007_cat.jpg", "0002_dog_1.JPEG", "12_x.png", "3_y.webp", "1_z.bmp"):
        draw(tmp_path / name)
    (tmp_path / "README.txt").write_text("not a picture")
    (tmp_path / "._0001_cat.jpg").write_text("what a Mac leaves behind")
    found = find_pictures(tmp_path)
    assert [path.name for path in found.paths] == sorted(path.name for path in found.paths)
    assert found.labels == (2, 7, 12, 1, 3)
    assert len(found) == 5


def test_labels_from_subfolders(tmp_path: Path) -> None:
    for name in ("cat/a.png", "cat/b.png", "ant/7_z.png"):
        draw(tmp_path / name)
    (tmp_path / "bee").mkdir()  # a class without pictures still counts
    (tmp_path / ".cache").mkdir()
    found = find_pictures(str(tmp_path))
    assert [(path.name, label) for path, label in zip(found.paths, found.labels, strict=True)] == [
        ("7_z.png", 0),
        ("a.png", 2),
        ("b.png", 2),
    ]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file or directory"):
        find_pictures(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Not a directory"):
        find_pictures(draw(tmp_path / "0_a.png"))


@pytest.mark.parametrize("name", [None, "notes.txt", "train/cat/a.png"])
def test_a_folder_without_pictures(tmp_path: Path, name: str | None) -> None:
    if name:
        draw(tmp_path / "x.png").rename(tmp_path / "moved")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "moved").rename(tmp_path / name)
    with pytest.raises(ModelError, match="no pictures in") as caught:
        find_pictures(tmp_path)
    assert "try:" in str(caught.value)


def test_mixed_layouts(tmp_path: Path) -> None:
    draw(tmp_path / "0_a.png")
    draw(tmp_path / "cat" / "b.png")
    with pytest.raises(ModelError, match=r"0_a.png and cat/b.png"):
        find_pictures(tmp_path)


@pytest.mark.parametrize("name", ["cat_1.png", "0007.png", "-1_x.png", "1.5_x.png", "_x.png"])
def test_a_name_without_a_number(tmp_path: Path, name: str) -> None:
    draw(tmp_path / name)
    with pytest.raises(ModelError, match=f"no class number in the file name {name}"):
        find_pictures(tmp_path)


def test_batches(tmp_path: Path) -> None:
    for label, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        draw(tmp_path / f"{label}_a.png", colour)
    batches = list(find_pictures(tmp_path).batches(SMALL, 2))
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32
    assert torch.equal(images[:, :, 4, 4], torch.eye(3))


@pytest.mark.parametrize("damage", ["truncate", "empty", "text"])
def test_an_unreadable_picture_is_named(tmp_path: Path, damage: str) -> None:
    draw(tmp_path / "0_good.png")
    path = tmp_path / "1_bad.jpg"
    Image.effect_noise((64, 64), 80).save(path)
    whole = path.read_bytes()
    path.write_bytes({"truncate": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ModelError, match=r"cannot read the picture .*1_bad\.jpg"):
        list(find_pictures(tmp_path).batches(SMALL, 1))


def test_a_picture_that_vanished(tmp_path: Path) -> None:
    draw(tmp_path / "0_a.png")
    found = find_pictures(tmp_path)
    found.paths[0].unlink()
    with pytest.raises(ModelError, match=r"0_a\.png"):
        next(found.batches(SMALL, 1))


def some(count: int) -> Pictures:
    return Pictures(tuple(Path(f"{i}_x.png") for i in range(count)), tuple(range(count)))


@pytest.mark.parametrize(("first", "size"), [(3, 3), (0.25, 5), (0.5, 10), (19, 19)])
def test_splits_are_disjoint_complete_and_repeatable(first: int | float, size: int) -> None:
    one, other = some(20).split(first, seed=5)
    assert len(one) == size
    assert sorted(one.labels + other.labels) == list(range(20))
    assert [path.name for path in one.paths] == [f"{label}_x.png" for label in one.labels]
    assert some(20).split(first, seed=5) == (one, other)
    assert some(20).split(first, seed=6) != (one, other)
    assert list(other.labels) != sorted(other.labels) or len(other) == 1


def test_the_shuffle_is_fixed() -> None:
    assert some(6).split(3, seed=0)[0].labels == (4, 2, 1)


@pytest.mark.parametrize("first", [0, 20, 21, -1, 0.0, 1.0, 0.01])
def test_splits_with_an_empty_side_are_refused(first: int | float) -> None:
    with pytest.raises(UsageError, match="of 20 pictures"):
        some(20).split(first)


def test_take() -> None:
    assert some(5).take(2).labels == (0, 1)
    assert some(5).take(9) == some(5)
    with pytest.raises(UsageError):
        some(5).take(0)


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="1 pictures, 2 labels"):
        Pictures((Path("0_a.png"),), (0, 1))
    with pytest.raises(UsageError):
        list(some(2).batches(SMALL, 0))
