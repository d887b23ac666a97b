"""Vision-language models from the word that names them on the command line."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunepass.errors import ModelError, UsageError
from prunepass.sources.from_transformers import (
    has_class,
    read_config,
    read_folder,
    read_state,
    silent,
)
from prunepass.sources.transformers_build import build_model, class_among

TINY_LLAVA = "prunepass/tiny_llava"


@dataclass(frozen=True, kw_only=True)
class LoadedVlm:
    """A vision-language model ready to be compiled.

    Attributes:
        spec: The word that named it.
        module: An image-text-to-text model of transformers, in eval mode.
        weights: Where its weights came from.
        processor: Its processor, or None where the folder has none.
        preprocessing: How a picture becomes an input, where no processor says so.
        template: A prompt with `{image}` and `{prompt}`, where no processor says so.
    """

    spec: str
    module: nn.Module
    weights: str
    processor: Any
    preprocessing: dict[str, Any] | None = None
    template: str | None = None


def is_vision_language(spec: str) -> bool:
    """Whether a word names a model that answers with text to a picture.

    Raises:
        ModelError: It names a folder of transformers that cannot be read.
    """
    return spec == TINY_LLAVA or has_class(spec, _model_class)


def load_vision_language(spec: str, *, weights: str = "pretrained") -> LoadedVlm:
    """The model that `spec` names, on the CPU, in eval mode.

    Args:
        spec: `hf/FOLDER-or-ID` or `prunepass/tiny_llava`.
        weights: `pretrained`, `random` (the same at every call) or a file.

    Raises:
        UsageError: The word names no vision-language model.
        ModelError: Config or weights cannot be read.
    """
    if spec == TINY_LLAVA:
        return _tiny_llava(spec, weights)
    import transformers

    name = spec.removeprefix("hf/")
    file = None if weights in ("pretrained", "random") else Path(weights)
    folder = read_folder(name, needs_weights=weights == "pretrained")
    with silent(transformers):
        config = read_config(transformers, folder)
        model_class = _model_class(transformers, config)
        if model_class is None:
            raise UsageError(
                f"{spec} is no vision-language model",
                found=f"model_type {config.model_type!r}",
                fix="a model of pictures and text, such as LLaVA",
            )
        state, label = read_state(folder, name, weights, file)
        model = build_model(model_class, config, state, label, name).eval()
        processor = None
        with contextlib.suppress(Exception):  # a folder may hold no processor, or half of one
            processor = _loaded(transformers.AutoProcessor, folder)
        if processor is None:
            with contextlib.suppress(Exception):
                processor = _loaded(transformers.AutoTokenizer, folder)
    return LoadedVlm(spec=spec, module=model, weights=label, processor=processor)


def _loaded(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, local_files_only=True)


def _model_class(transformers: Any, config: Any) -> Any:
    """The class that answers with text to a picture, None where the config has none."""
    if not hasattr(config, "vision_config"):
        return None
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return class_among(transformers, config, known)


def _tiny_llava(spec: str, weights: str) -> LoadedVlm:
    import torch

    from prunepass.models import (  # type: ignore[import-not-found, unused-ignore]
        tiny_llava,
        vlm_words,
    )

    if weights == "random":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = tiny_llava.tiny_llava().eval()
    elif weights == "pretrained":
        model = tiny_llava.load_tiny_llava()
    else:
        raise ModelError(
            f"{spec} has weights of its own", found=f"--weights {weights}", fix="pretrained, random"
        )
    side = tiny_llava.SIZE
    preprocessing = {
        "height": side, "width": side, "resize": side, "interpolation": "bicubic",
        "mean": list(tiny_llava.MEAN), "std": list(tiny_llava.STD), "fit": "crop",
    }  # fmt: skip
    return LoadedVlm(
        spec=spec,
        module=model,
        weights=weights,
        processor=vlm_words.tokenizer(),
        preprocessing=preprocessing,
        template=vlm_words.TEMPLATE,
    )
