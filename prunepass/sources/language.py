"""Language models from the word that names them on the command line."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunepass.errors import ModelError, UsageError, looked_up
from prunepass.sources.from_transformers import (
    has_class,
    read_config,
    read_folder,
    read_state,
    silent,
)
from prunepass.sources.transformers_build import build_model, class_among

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LoadedLanguage:
    """A language model ready to be compiled.

    Attributes:
        spec: The word that named it.
        module: A ...ForCausalLM of transformers, in eval mode.
        tokenizer: Its tokenizer, or None where the folder has none.
        weights: `random`, or the name of the file they came from.
    """

    spec: str
    module: nn.Module
    tokenizer: Any
    weights: str


_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def is_language(spec: str) -> bool:
    """Whether a word names a model that goes on with text.

    Raises:
        ModelError: It names a folder of transformers that cannot be read.
    """
    return has_class(spec, _model_class)


def load_language(
    spec: str, *, weights: str = "pretrained", dtype: str | None = None
) -> LoadedLanguage:
    """The language model that `spec` names, on the CPU, in eval mode.

    Args:
        spec: `hf/FOLDER-or-ID`.
        weights: `pretrained`, `random` (the same at every call) or a file.
        dtype: `float32`, the default, or `bfloat16`.

    Raises:
        UsageError: The word names no language model, or the dtype is unknown.
        ModelError: Config or weights cannot be read, or weights are quantised.
    """
    import transformers

    kind = looked_up(DTYPES, dtype or "float32", "dtype", UsageError)
    name = spec.removeprefix("hf/")
    file = None if weights in ("pretrained", "random") else Path(weights)
    folder = read_folder(name, needs_weights=weights == "pretrained")
    with silent(transformers):
        config = read_config(transformers, folder)
        model_class = _model_class(transformers, config)
        if model_class is None:
            raise UsageError(
                f"{spec} is no language model",
                found=f"model_type {config.model_type!r}",
                fix="a model with a causal head, such as Llama",
            )
        if getattr(config, "quantization_config", None) is not None:
            method = dict(config.quantization_config).get("quant_method", "unknown")
            raise ModelError(
                f"{spec} has quantised weights",
                found=f"quantization_config of method {method!r}",
                fix="its original weights: groups of quantised numbers run along the inputs, so "
                "single inputs cannot be left out",
            )
        state, label = read_state(folder, name, weights, file)
        model = build_model(model_class, config, state, label, name).to(kind).eval()
        tokenizer = None
        # Without any such file transformers makes a tokenizer that knows no words.
        if any((Path(folder) / name).is_file() for name in _TOKENIZERS):
            with contextlib.suppress(Exception):  # a folder may hold half of one
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    folder, local_files_only=True
                )
    return LoadedLanguage(spec=spec, module=model, tokenizer=tokenizer, weights=label)


def _model_class(transformers: Any, config: Any) -> Any:
    """The class that goes on with text, None where the config has none."""
    if hasattr(config, "vision_config"):
        return None
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return class_among(transformers, config, known)
