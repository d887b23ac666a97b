"""From a picture to the tensor that a model was trained to see."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunepass.errors import ModelError, UsageError, nearest

FITS = ("crop", "squash", "pad")
INTERPOLATIONS = ("bicubic", "bilinear")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes an input: resize, centre crop, scale to 0..1, normalise.

    Args:
        height: Of the input, pixels.
        width: Of the input, pixels.
        resize: Pixels of the input's shorter side before the crop; at least min(height, width).
        interpolation: `bicubic` or `bilinear`, both with antialiasing.
        mean: Of each RGB channel in 0..1, taken away.
        std: Of each RGB channel, divided by; above 0.
        fit: What happens to the aspect ratio. `crop` keeps it and scales the shorter side to
            `resize`; `squash` gives it up, so nothing is lost but the crop; `pad` keeps it, scales
            the longer side to `resize` and fills the rest with the mean colour.

    Source: timm.data.transforms_factory.transforms_imagenet_eval (crop_mode center, squash and
    border), written with PIL and torch alone so that a bundle runs without timm or torchvision.
    """

    height: int
    width: int
    resize: int
    interpolation: str = "bicubic"
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    fit: str = "crop"

    def __post_init__(self) -> None:
        for name in ("height", "width", "resize"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise _unusable(
                    f"{name}={value!r}", f"{name} is a whole number of pixels from 1 on"
                )
        if self.resize < min(self.height, self.width):
            raise _unusable(
                f"resize={self.resize} for an input of {self.height} x {self.width}",
                "resize is at least the shorter side of the input",
            )
        if self.interpolation not in INTERPOLATIONS:
            raise _unusable(
                f"interpolation={self.interpolation!r}",
                "one of " + nearest(str(self.interpolation), INTERPOLATIONS),
            )
        if self.fit not in FITS:
            raise _unusable(f"fit={self.fit!r}", "one of " + nearest(str(self.fit), FITS))
        if not _is_triple(self.mean):
            raise _unusable(
                f"mean={self.mean!r}", "mean is three numbers, for instance 0.5 0.5 0.5"
            )
        if not _is_triple(self.std) or min(self.std) <= 0:
            raise _unusable(f"std={self.std!r}", "std is three numbers above 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: numbers, strings and lists."""
        plain = dataclasses.asdict(self)
        return {**plain, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocessing:
        """What `to_dict` wrote; every key must be there, and no other.

        Raises:
            ModelError: a key is missing or unknown, or a value is out of its range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        wrong = sorted(set(names) ^ {str(key) for key in plain})
        if wrong:
            raise _unusable(
                f"missing or unknown: {', '.join(wrong)}", f"exactly {', '.join(names)}"
            )
        values = {name: plain[name] for name in names}
        for name in ("mean", "std"):
            if isinstance(values[name], Sequence) and not isinstance(values[name], str):
                values[name] = tuple(values[name])
        return cls(**values)

    @classmethod
    def from_timm(cls, config: Mapping[str, Any], *, size: int | None = None) -> Preprocessing:
        """What a timm `pretrained_cfg` says, with timm's own defaults for what it leaves out.

        Args:
            config: A timm pretrained configuration as a mapping; may be empty.
            size: Input pixels a side where they are not the configuration's.

        Raises:
            ModelError: the model takes other than three channels, or asks for a resize that
                Preprocessing does not know.
        """
        channels, height, width = config.get("input_size") or (3, 224, 224)
        if channels != 3:
            raise ModelError(
                "only models of RGB pictures can be prepared for",
                found=f"{channels} input channels",
                fix="a model with three input channels",
            )
        if size is not None:
            height = width = size
        crop = config.get("crop_pct") or 0.875
        fits = {"center": "crop", "squash": "squash", "border": "pad"}
        mode = config.get("crop_mode") or "center"
        return cls(
            height=int(height),
            width=int(width),
            resize=math.floor(min(height, width) / crop),
            interpolation=config.get("interpolation") or "bicubic",
            mean=_triple(config.get("mean") or IMAGENET_MEAN),
            std=_triple(config.get("std") or IMAGENET_STD),
            fit=fits.get(mode, mode),
        )

    def override(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: float | None = None,
    ) -> Preprocessing:
        """The same with another mean, std or crop; None leaves a value as it is.

        Args:
            mean: One number for all channels, or three, in 0..1.
            std: One number for all channels, or three, above 0.
            crop: Share of the resized side that the centre crop keeps, above 0, at most 1.

        Raises:
            UsageError: a value is out of its range.
        """
        changes: dict[str, Any] = {}
        if mean is not None:
            changes["mean"] = _numbers("mean", mean, least=-math.inf)
        if std is not None:
            changes["std"] = _numbers("std", std, least=0.0)
        if crop is not None:
            if not 0 < crop <= 1:
                raise UsageError(
                    "--crop is the share of the resized side that is kept",
                    found=f"{crop!r}",
                    fix="a number above 0 and at most 1, for instance 0.9",
                )
            changes["resize"] = math.floor(min(self.height, self.width) / crop)
        return dataclasses.replace(self, **changes)

    def apply(self, picture: Any) -> Tensor:
        """The picture as an input [3, H, W], float32, normalised.

        Args:
            picture: A PIL image of any mode; its EXIF orientation is applied.
        """
        from PIL import Image

        resampling = Image.Resampling[self.interpolation.upper()]
        rgb = upright_rgb(picture)
        size = self._resized(rgb.height, rgb.width)
        if (rgb.height, rgb.width) != size:
            rgb = rgb.resize((size[1], size[0]), resampling)
        return self.normalised(self._centred(rgb))

    def normalised(self, rgb: Any) -> Tensor:
        """An RGB PIL image of any size as it is: [3, H, W], float32, normalised."""
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        image = pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1).to(torch.float32) / 255
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        return ((image - mean) / std).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize, before the crop."""
        short = min(self.height, self.width)
        target = (self.height * self.resize // short, self.width * self.resize // short)
        if self.fit == "squash":
            return target
        if self.fit == "crop" and self.height == self.width:
            # torchvision rounds down here, timm's own resize for other shapes rounds to nearest.
            if width <= height:
                return int(self.resize * height / width), self.resize
            return self.resize, int(self.resize * width / height)
        ratios = (height / target[0], width / target[1])
        ratio = max(ratios) if self.fit == "pad" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _centred(self, rgb: Any) -> Any:
        """The centre of the PIL image, [H, W] pixels, filled up where it is too small."""
        from PIL import Image

        down, right = max(0, self.height - rgb.height), max(0, self.width - rgb.width)
        if down or right:
            fill = tuple(round(255 * m) for m in self.mean) if self.fit == "pad" else (0, 0, 0)
            canvas = Image.new("RGB", (rgb.width + right, rgb.height + down), fill)
            canvas.paste(rgb, (right // 2, down // 2))
            rgb = canvas
        top = round((rgb.height - self.height) / 2)
        left = round((rgb.width - self.width) / 2)
        return rgb.crop((left, top, left + self.width, top + self.height))


def upright_rgb(picture: Any) -> Any:
    """The PIL image with its EXIF orientation applied, in RGB; 16-bit greys keep their contrast."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value * (1 / 256)).convert("L")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _is_triple(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        and all(math.isfinite(v) for v in value)
    )


def _triple(values: Sequence[float]) -> Triple:
    """Three floats; one number stands for all channels."""
    numbers = [float(value) for value in values]
    first, second, third = numbers * 3 if len(numbers) == 1 else numbers
    return first, second, third


def _numbers(name: str, values: Sequence[float], *, least: float) -> Triple:
    numbers = [float(value) for value in values]
    if len(numbers) not in (1, 3) or not all(math.isfinite(v) and v > least for v in numbers):
        bound = "" if least == -math.inf else f" above {least:g}"
        raise UsageError(
            f"--{name} is one number or three{bound}, in the scale of pixels from 0 to 1",
            found=", ".join(f"{v:g}" for v in numbers) or "nothing",
            fix=f"--{name} 0.5 0.5 0.5",
        )
    return _triple(numbers)


def _unusable(found: str, fix: str) -> ModelError:
    return ModelError("this preprocessing cannot be used", found=found, fix=fix)
