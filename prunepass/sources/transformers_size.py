"""Another picture size for a model of transformers, with its position tables resampled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from prunepass.errors import ModelError


def resampled_model(
    model: nn.Module,
    config: Any,
    wanted: tuple[int, int],
    *,
    name: str,
    construct: Callable[[Any], nn.Module],
) -> nn.Module:
    """A copy of the model for pictures of height x width, its position tables resampled by the
    family's own `interpolate_pos_encoding`.

    Args:
        model: With the weights, at the config's picture size.
        config: Of the model.
        wanted: Height and width, pixels.
        name: For messages.
        construct: Builds the same class from a config.

    Raises:
        ModelError: a tensor other than those tables depends on the picture size.
    """
    patch = getattr(_vision(config), "patch_size", None)
    native = config_size(config)
    if native is None or not isinstance(patch, int):
        return model  # nothing of the model depends on the size of its pictures
    if wanted[0] % patch or wanted[1] % patch:
        raise ModelError(
            f"hf/{name} cannot take pictures of {wanted[0]} x {wanted[1]}",
            found=f"patches of {patch} pixels, which do not fill them",
            fix=f"an image size that {patch} divides",
        )
    grid = (native[0] // patch) * (native[1] // patch)
    new_grid = (wanted[0] // patch) * (wanted[1] // patch)
    changed = copy.deepcopy(config)
    _vision(changed).image_size = wanted[0] if wanted[0] == wanted[1] else list(wanted)
    target = construct(changed)
    state = dict(model.state_dict())
    with torch.no_grad():
        for path, part in model.named_modules():
            resample = getattr(part, "interpolate_pos_encoding", None)
            if not callable(resample):
                continue
            for field in ("position_embeddings", "position_embedding"):
                table = getattr(part, field, None)
                key = f"{path}.{field}" + (".weight" if isinstance(table, nn.Embedding) else "")
                if key in state:
                    *_, count, channels = state[key].shape
                    tokens = torch.zeros(1, count - grid + new_grid, channels)
                    changed_table = resample(tokens, *wanted)
                    state[key] = changed_table[0] if state[key].ndim == 2 else changed_table
    expected = target.state_dict()
    misshaped = [key for key in expected if expected[key].shape != state[key].shape]
    # Index tables (relative positions) follow from the size and keep the new model's values.
    tables = [key for key in misshaped if expected[key].is_floating_point()]
    if tables:
        raise ModelError(
            f"hf/{name} cannot be built for pictures of {wanted[0]} x {wanted[1]}",
            found=f"{len(tables)} tensors depend on the size ({', '.join(tables[:3])})",
            fix="the model's own size",
        )
    kept = {key: expected[key] for key in misshaped}
    ids = {key: value for key, value in expected.items() if key.endswith("position_ids")}
    target.load_state_dict({**state, **kept, **ids}, strict=True)
    return target


def check_runs(module: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Raises ModelError unless the module runs on a picture of that height and width."""
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, *size))
    except Exception as error:
        raise ModelError(
            f"hf/{name} cannot be built for pictures of {size[0]} x {size[1]}",
            found=f"{type(error).__name__}: {str(error).strip()[:200]}",
            fix="the model's own size",
        ) from error


def _vision(config: Any) -> Any:
    """The part of the config that describes the vision tower: a nested one, or the whole."""
    return getattr(config, "vision_config", config)


def config_size(config: Any) -> tuple[int, int] | None:
    """Height and width of the config's pictures, pixels; None where it has none."""
    size = getattr(_vision(config), "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None
