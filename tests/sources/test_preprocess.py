"""Preprocessing equals timm's evaluation transform, and goes through JSON unchanged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prunepass.errors import ModelError, UsageError
from prunepass.sources.preprocess import Preprocessing, upright_rgb

NO_NORM = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """A picture of coloured patches with sharp edges."""
    values = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return Image.fromarray(values.astype(np.uint8).repeat(4, 0).repeat(4, 1)[:height, :width])


@pytest.mark.parametrize("size", [(301, 200), (200, 301), (96, 96), (40, 77), (248, 500)])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", [0.9, 1.0])
def test_it_equals_timms_transform(
    size: tuple[int, int], mode: str, interpolation: str, crop: float
) -> None:
    from timm.data import create_transform

    config = {
        "input_size": (3, 96, 96),
        "interpolation": interpolation,
        "crop_pct": crop,
        "crop_mode": mode,
        **NO_NORM,
    }
    picture = noise(*size)
    expected = create_transform(**config)(picture)
    found = Preprocessing.from_timm(config).apply(picture)
    assert found.shape == (3, 96, 96)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 2 / 255


def test_it_equals_timms_transform_for_oblong_inputs() -> None:
    from timm.data import create_transform

    config = {"input_size": (3, 64, 128), "crop_pct": 0.8, "interpolation": "bicubic", **NO_NORM}
    picture = noise(300, 200)
    expected = create_transform(**config)(picture)
    assert (Preprocessing.from_timm(config).apply(picture) - expected).abs().max() <= 2 / 255


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "test_vit"]
)
def test_it_reads_a_configuration_as_timm_does(name: str) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    config = timm.get_pretrained_cfg(name).to_dict()
    picture = noise(330, 260)
    expected = create_transform(**resolve_data_config(pretrained_cfg=config))(picture)
    found = Preprocessing.from_timm(config)
    assert (
        (found.apply(picture) - expected).abs() * torch.tensor(found.std).view(3, 1, 1)
    ).max() <= 2 / 255


def test_an_empty_configuration_gets_timms_defaults() -> None:
    from timm.data import resolve_data_config

    expected = resolve_data_config(args={"img_size": 192})
    found = Preprocessing.from_timm({}, size=192)
    assert (3, found.height, found.width) == expected["input_size"]
    assert (found.mean, found.std) == (expected["mean"], expected["std"])
    assert found.interpolation == expected["interpolation"]
    assert found.resize == int(192 / expected["crop_pct"])


def test_it_normalises() -> None:
    grey = Image.new("RGB", (10, 10), (51, 102, 255))
    found = Preprocessing(
        height=4, width=4, resize=4, mean=(0.1, 0.2, 0.5), std=(0.5, 0.1, 0.25)
    ).apply(grey)
    expected = torch.tensor([0.2, 2.0, 2.0]).view(3, 1, 1).expand(3, 4, 4)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_it_goes_through_json_unchanged() -> None:
    one = Preprocessing(
        height=32, width=48, resize=40, interpolation="bilinear", mean=(0.1, 0.2, 0.3), fit="pad"
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("height", 0),
        ("height", 8.5),
        ("width", True),
        ("width", "8"),
        ("resize", 7),
        ("interpolation", "nearest"),
        ("interpolation", 3),
        ("mean", [0.5, 0.5]),
        ("mean", "0.5"),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", [[0.5], 0.5, 0.5]),
        ("std", [0.5, 0.0, 0.5]),
        ("std", None),
        ("fit", "stretch"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    plain = {**Preprocessing(height=8, width=8, resize=8).to_dict(), key: value}
    with pytest.raises(ModelError, match=key):
        Preprocessing.from_dict(plain)


def test_missing_and_unknown_keys_are_refused_by_name() -> None:
    plain = Preprocessing(height=8, width=8, resize=8).to_dict()
    del plain["std"]
    with pytest.raises(ModelError, match="missing or unknown: gamma, std"):
        Preprocessing.from_dict({**plain, "gamma": 1})


def test_overrides() -> None:
    one = Preprocessing(height=224, width=224, resize=248)
    assert one.override() == one
    changed = one.override(mean=[0.4], std=[0.1, 0.2, 0.3], crop=0.875)
    assert changed.mean == (0.4, 0.4, 0.4)
    assert changed.std == (0.1, 0.2, 0.3)
    assert changed.resize == 256


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": [0.5, 0.5]},
        {"mean": []},
        {"std": [0.0]},
        {"std": [-1.0, 1.0, 1.0]},
        {"mean": [float("nan")]},
        {"crop": 0.0},
        {"crop": 1.5},
        {"crop": float("nan")},
    ],
)
def test_overrides_out_of_range_are_usage_errors(wrong: dict[str, object]) -> None:
    (word,) = wrong
    with pytest.raises(UsageError, match=f"--{word}"):
        Preprocessing(height=8, width=8, resize=8).override(**wrong)  # type: ignore[arg-type]


def test_models_of_one_channel_are_refused() -> None:
    with pytest.raises(ModelError, match="1 input channels"):
        Preprocessing.from_timm({"input_size": (1, 28, 28)})


def test_pictures_of_any_mode_become_upright_rgb() -> None:
    colour = noise(20, 10)
    for mode in ("L", "LA", "RGBA", "CMYK", "P", "1", "YCbCr", "F", "I"):
        rgb = upright_rgb(
            colour.convert("L").convert(mode) if mode in "FI" else colour.convert(mode)
        )
        assert (rgb.mode, rgb.size) == ("RGB", (20, 10))
    assert np.array_equal(np.asarray(upright_rgb(colour.convert("RGBA"))), np.asarray(colour))


def test_greys_of_16_bits_keep_their_contrast() -> None:
    values = (np.arange(200, dtype=np.uint16) * 256).reshape(10, 20)
    rgb = np.asarray(upright_rgb(Image.fromarray(values)))
    assert np.array_equal(rgb[..., 0].astype(int), values // 256)


def test_the_exif_orientation_is_applied() -> None:
    picture = noise(20, 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    turned = upright_rgb(Image.open(buffer))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(picture), -1))
