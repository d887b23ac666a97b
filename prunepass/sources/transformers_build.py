"""A transformers model from its class, config and tensors, strictly."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.errors import ModelError
from prunepass.sources.weights import refuse_misfit, seeded

# What a checkpoint of picture and text has beside the vision tower.
_TEXT_KEYS = re.compile(
    r"(text_model|text_projection|text_encoder|text_embed|logit_scale|logit_bias)\b"
)


def build_model(
    model_class: Any, config: Any, state: dict[str, Tensor] | None, label: str, name: str
) -> nn.Module:
    """The model with the state's values, strictly; with random ones where `state` is None.

    `from_pretrained` does the loading because it knows the names of older checkpoints.
    """
    if state is None:
        return construct(model_class, config, name)
    options: dict[str, Any] = {
        "config": config,
        "state_dict": state,
        "attn_implementation": _attention(model_class),
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,  # reported below, all of them at once
        "output_loading_info": True,
    }
    try:
        with seeded():
            model, report = model_class.from_pretrained(None, **options)
            missing = report["missing_keys"]
            poolers = "add_pooling_layer" in inspect.signature(model_class).parameters
            if missing and poolers and all(key.startswith("pooler.") for key in missing):
                # Self-supervised checkpoints have no pooler: their feature is the class token.
                options["add_pooling_layer"] = False
                model, report = model_class.from_pretrained(None, **options)
    except Exception as error:
        raise _cannot_build(name, error) from error
    _check_report(report, label)
    result: nn.Module = model
    return result


def _check_report(report: Mapping[str, Any], label: str) -> None:
    """Raises ModelError where from_pretrained could not place every tensor."""

    def size(shape: Any) -> str:
        return " x ".join(str(n) for n in shape) or "one number"

    refuse_misfit(
        sorted(report["missing_keys"]),
        sorted(key for key in report["unexpected_keys"] if not _TEXT_KEYS.match(key)),
        [
            f"{key} is {size(found)}, the model has {size(expected)}"
            for key, found, expected in sorted(report["mismatched_keys"])
        ],
        name=label,
    )


def construct(model_class: Any, config: Any, name: str, **options: Any) -> nn.Module:
    try:
        with seeded():
            model: nn.Module = model_class._from_config(
                config,
                attn_implementation=_attention(model_class),
                dtype=torch.float32,
                **options,
            )
    except Exception as error:
        raise _cannot_build(name, error) from error
    return model


def has_no_pooler(model: nn.Module) -> bool:
    return getattr(model, "pooler", True) is None


def _attention(model_class: Any) -> str:
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def _cannot_build(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"transformers cannot build hf/{name}",
        found=f"{type(error).__name__}: {str(error).strip()[:200]}",
        fix="check config.json: from_pretrained alone shows where it fails",
    )


def class_among(transformers: Any, config: Any, known: Mapping[str, str]) -> Any:
    """The class that a config names, or that its type has, among those of one task; None for none.

    Args:
        transformers: The package.
        config: Of a model.
        known: Type of model -> name of its class for the task.
    """
    named = (getattr(config, "architectures", None) or [""])[0]
    if named and named not in known.values():
        return None
    return getattr(transformers, named or known.get(config.model_type, ""), None)
