"""A model from the word that names it on the command line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunepass.errors import ModelError, UsageError
from prunepass.sources.from_catalogue import load_catalogue
from prunepass.sources.from_file import load_from_file
from prunepass.sources.from_timm import check_size, fused_attention, load_timm
from prunepass.sources.from_transformers import load_transformers
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.weights import apply_weights, weights_file

FORMS = "timm/NAME, hf/FOLDER-or-ID, prunepass/NAME or path/to/file.py:function"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be captured, and how its pictures are prepared.

    Args:
        spec: The word that named it, as given.
        module: In eval mode, float parameters without gradients; images [B, 3, H, W] ->
            logits [B, classes] or features [B, C].
        preprocessing: From the model's own data configuration, with the caller's overrides.
        weights: `pretrained`, `random`, `as built` (by the function of a user's file) or the
            name of the weights file.
        fused_attention: What timm.layers.use_fused_attn() said, where the model may have
            timm's layers; else None.
    """

    spec: str
    module: nn.Module
    preprocessing: Preprocessing
    weights: str
    fused_attention: bool | None = None

    def example(self, batch: int = 2) -> Tensor:
        """Random inputs [B, 3, H, W], float32, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        size = (batch, 3, self.preprocessing.height, self.preprocessing.width)
        return torch.randn(size, generator=generator, dtype=torch.float32)


def load_model(
    spec: str,
    *,
    weights: str = "pretrained",
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
) -> LoadedModel:
    """The model that `spec` names, on the CPU, in eval mode and float32.

    The caller's random numbers, environment variables and library settings are left as they are.

    Args:
        spec: `timm/NAME`, `hf/FOLDER-or-ID`, `prunepass/NAME` or `path/to/file.py:function`.
        weights: `pretrained`, `random` (the same at every call) or a file: safetensors, or a
            torch file that loads with `weights_only=True`. For a user's file, `pretrained`
            takes the model as its function built it.
        image_size: Input pixels a side; the position embeddings are resampled to it. None: the
            model's own size.
        mean: Overrides the preprocessing; see Preprocessing.override.
        std: Likewise.
        crop: Likewise.

    Raises:
        UsageError: `spec`, `weights` or an override is malformed.
        ModelError: the model, its weights or its other input size cannot be had.
    """
    if image_size is not None and image_size < 1:
        raise UsageError("the image size is pixels a side", found=str(image_size), fix="192")
    file = weights_file(weights)
    label = file.name if file is not None else weights
    kind, _, name = spec.partition("/")
    if kind == "timm" and name:
        module, preprocessing = load_timm(name, weights=weights, file=file, image_size=image_size)
    elif kind == "hf" and name:
        module, preprocessing = load_transformers(
            name, weights=weights, file=file, image_size=image_size
        )
    elif kind == "prunepass" and name:
        module, preprocessing = load_catalogue(name, weights=weights, file=file)
        preprocessing = _resample(module, spec, preprocessing, image_size)
    elif spec.rpartition(":")[0].endswith(".py") and spec.rpartition(":")[2].isidentifier():
        module, preprocessing = load_from_file(spec)
        label = "as built" if weights == "pretrained" else label
        if file is not None:
            apply_weights(module, file)
        preprocessing = _resample(module, spec, preprocessing, image_size)
    else:
        raise UsageError("this names no model", found=repr(spec), fix=FORMS)
    return LoadedModel(
        spec=spec,
        module=module.float().eval().requires_grad_(False),
        preprocessing=preprocessing.override(mean=mean, std=std, crop=crop),
        weights=label,
        fused_attention=fused_attention() if kind != "hf" and "timm" in sys.modules else None,
    )


def _resample(
    module: nn.Module, name: str, preprocessing: Preprocessing, image_size: int | None
) -> Preprocessing:
    """Changes the module in place to another input size, where it knows how (timm's
    `set_input_size`), and returns the preprocessing for it."""
    if image_size is None:
        return preprocessing
    change = getattr(module, "set_input_size", None)
    if not callable(change):
        raise ModelError(
            f"{name} cannot be built for pictures of {image_size} x {image_size}",
            found=f"{type(module).__name__} has no method set_input_size",
            fix="a model that is built for that size",
        )
    try:
        change(img_size=(image_size, image_size))
    except Exception as error:
        raise ModelError(
            f"{name} cannot be built for pictures of {image_size} x {image_size}",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="an image size that the patch size divides",
        ) from error
    check_size(module.eval(), name, image_size)
    short = min(preprocessing.height, preprocessing.width)
    resize = preprocessing.resize * image_size // short
    return dataclasses.replace(
        preprocessing, height=image_size, width=image_size, resize=max(image_size, resize)
    )
