"""Preprocessing from the processor file of a transformers folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunepass.errors import ModelError
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.transformers_size import config_size

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling, as processor files write it


def read_preprocessing(transformers: Any, folder: Path, config: Any) -> Preprocessing:
    """What the folder's processor file says; without one, the family's defaults at the config's
    size (what transformers itself would do, not always what a family's weights were trained
    with), and where there are none, mean and std 0.5 without a crop."""
    stored: Any = None
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            try:
                stored = json.loads((folder / name).read_text())
                stored = dict(stored.get("image_processor", stored))
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise ModelError(
                    f"cannot read {name} of {folder}",
                    found=f"{type(error).__name__}: {error}",
                    fix="mend the file or remove it",
                ) from error
            break
    default = _processor_defaults(transformers, config.model_type)
    if stored is None:
        height, width = config_size(config) or (224, 224)
        size = {"height": height, "width": width}
        stored = {**default, "size": size, "crop_size": size}
    try:
        return from_processor({**default, **stored}, config_size(config) or (224, 224))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"cannot read the preprocessing of {folder}",
            found=f"{type(error).__name__}: {error}",
            fix="a preprocessor_config.json as transformers writes it",
        ) from error


def from_processor(stored: Mapping[str, Any], own: tuple[int, int]) -> Preprocessing:
    """A Preprocessing from the fields of a transformers image processor."""
    size = stored.get("size") or {"height": own[0], "width": own[1]}
    if isinstance(size, int):
        size = {"shortest_edge": size} if stored.get("do_center_crop") else _square(size)
    crop = stored.get("crop_size") if stored.get("do_center_crop") else None
    crop = _square(crop) if isinstance(crop, int) else crop
    if "shortest_edge" in size:
        resize, fit = size["shortest_edge"], "crop"
        target = crop or _square(resize)
    elif "height" in size:
        target = crop or size
        shorter = "height" if target["height"] <= target["width"] else "width"
        resize, fit = size[shorter], "squash"
    else:
        raise ValueError(f"size {size!r} has neither shortest_edge nor height and width")
    mean, std = stored.get("image_mean") or 0.5, stored.get("image_std") or 0.5
    if stored.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    # A processor may scale pixels to another range than 0..1 before it normalises.
    scale = 255 * stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 255
    return Preprocessing(
        height=int(target["height"]),
        width=int(target["width"]),
        resize=int(max(resize, min(target["height"], target["width"]))),
        interpolation=_RESAMPLE.get(stored.get("resample", 3), str(stored.get("resample"))),
        fit=fit,
        mean=_channels(mean, scale),
        std=_channels(std, scale),
    )


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _channels(value: Any, scale: float) -> tuple[float, float, float]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    first, second, third = (float(v) / scale for v in values)
    return first, second, third


def _processor_defaults(transformers: Any, model_type: str) -> dict[str, Any]:
    """Class attributes of the family's image processor; empty where it has none."""
    auto = transformers.models.auto.image_processing_auto
    names = getattr(auto, "IMAGE_PROCESSOR_MAPPING_NAMES", {})
    entry = names.get(model_type) or names.get(model_type.removesuffix("_vision_model")) or ()
    for name in entry.values() if isinstance(entry, Mapping) else entry:
        try:
            processor = getattr(transformers, name or "", None)
        except Exception:  # some need torchvision or Pillow, and say so on access
            continue
        if getattr(processor, "image_mean", None) is not None:
            fields = ("image_mean", "image_std", "resample", "do_center_crop")
            found = {field: getattr(processor, field, None) for field in fields}
            return {field: value for field, value in found.items() if value is not None}
    return {}


def at_size(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """The same at another input size, with the same share cropped."""
    short = min(preprocessing.height, preprocessing.width)
    return dataclasses.replace(
        preprocessing,
        height=side,
        width=side,
        resize=max(side, preprocessing.resize * side // short),
    )
