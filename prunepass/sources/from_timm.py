"""Models of timm by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.errors import ModelError, nearest
from prunepass.sources.hub import cached_file, hub_unreachable, no_pretrained, reachable
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.weights import (
    apply_weights,
    check_finite,
    fitted,
    read_weights,
    seeded,
    shapes,
)


def load_timm(
    name: str, *, weights: str, file: Path | None, image_size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """The timm model and its preprocessing.

    Args:
        name: As timm lists it, with or without a pretrained tag.
        weights: `pretrained` or `random`; not looked at where there is a `file`.
        file: Weights of this model at its own input size.
        image_size: Input pixels a side where they are not the model's; timm resamples its tables.

    Raises:
        ModelError: the name is unknown, the weights cannot be had or do not fit, or the family
            has no other input size.
    """
    config = _config(name)
    if file is not None:
        module = _load_file(name, file, image_size)
    elif weights == "pretrained":
        module = _load_pretrained(name, config, image_size)
        check_finite(module.state_dict(), name)
    else:
        module = _create(name, image_size)
    if image_size is not None:
        check_size(module.eval(), name, image_size)
    return module, Preprocessing.from_timm(config, size=image_size)


def fused_attention() -> bool:
    """Whether timm's layers call scaled_dot_product_attention; a setting of the process."""
    from timm import layers

    use: Callable[[], bool] = vars(layers)["use_fused_attn"]
    return use()


def check_size(module: nn.Module, name: str, image_size: int) -> None:
    """Raises ModelError unless the model runs on pictures of that size, all of them used."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    sides = patch if isinstance(patch, tuple) else (patch,)
    if any(isinstance(side, int) and side > 0 and image_size % side for side in sides):
        raise ModelError(
            f"{name} cannot take pictures of {image_size} x {image_size}",
            found=f"patches of {sides[0]} pixels, which do not fill them",
            fix=f"an image size that {sides[0]} divides",
        )
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        raise _no_other_size(name, image_size, error) from error


def _config(name: str) -> Mapping[str, Any]:
    """The model's pretrained configuration, empty where timm has none."""
    try:
        import timm
        from timm.models import get_pretrained_cfg, is_model, split_model_name_tag
    except ImportError as error:
        raise ModelError(
            f"timm/{name} needs timm", found=str(error), fix='pip install "prunepass[models]"'
        ) from error
    base, tag = split_model_name_tag(name)
    if not is_model(base):
        close = nearest(base, timm.list_models()).split(", ")[:5]
        raise ModelError(
            f"timm has no model {base!r}",
            found=f"timm {timm.__version__} with {len(timm.list_models())} models",
            fix="one of " + ", ".join(close),
        )
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_pretrained(base + "*")
        close = nearest(name, known).split(", ")[:5] if known else [base]
        raise ModelError(
            f"timm has no weights {tag!r} of {base}", found=name, fix="one of " + ", ".join(close)
        ) from error
    return vars(config) if config is not None else {}


def _create(name: str, image_size: int | None, **options: Any) -> nn.Module:
    """What timm.create_model gives, with reproducible random numbers."""
    import timm

    if image_size is not None:
        options["img_size"] = image_size
    try:
        with seeded():
            module: nn.Module = timm.create_model(name, **options)
    except Exception as error:
        if image_size is not None:
            raise _no_other_size(name, image_size, error) from error
        raise ModelError(
            f"timm cannot build {name}",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix="timm.create_model alone shows where it fails",
        ) from error
    return module


def _load_file(name: str, file: Path, image_size: int | None) -> nn.Module:
    # Against the model at its own size first: at another size, a file of another model could
    # pass for one that only needs resampling.
    native = _create(name, None)
    convert = _filter(name)
    if image_size is None:
        apply_weights(native, file, convert=convert and partial(convert, model=native))
        return native
    state = fitted(
        shapes(native),
        read_weights(file),
        name=file.name,
        convert=convert and partial(convert, model=native),
    )
    module = _create(name, image_size)
    try:
        state = dict(convert(state, model=module)) if convert is not None else state
        module.load_state_dict(state, strict=True)
    except Exception as error:
        raise _no_other_size(name, image_size, error) from error
    return module


def _filter(name: str) -> Callable[..., Mapping[str, Tensor]] | None:
    """The family's function from the names and tables of a checkpoint to those of a model."""
    from timm.models import model_entrypoint, split_model_name_tag

    family = sys.modules[model_entrypoint(split_model_name_tag(name)[0]).__module__]
    found = getattr(family, "checkpoint_filter_fn", None) or getattr(family, "_filter_fn", None)
    if found is None:
        return None

    def convert(state: dict[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        try:
            changed: Mapping[str, Tensor] = found(state, model)
        except TypeError:  # older families take the state dict alone
            changed = found(state)
        return changed

    return convert


def _load_pretrained(name: str, config: Mapping[str, Any], image_size: int | None) -> nn.Module:
    source: dict[str, Any] = {}
    if config.get("hf_hub_id"):
        given = config.get("hf_hub_filename")
        names = (given,) if given else ("model.safetensors", "pytorch_model.bin")
        file = cached_file(config["hf_hub_id"], names)
        if file is not None:
            source = {"pretrained_cfg_overlay": {"file": str(file)}}
        else:
            reason = hub_unreachable()
            if reason is not None:
                raise no_pretrained(name, f"the hub cannot be reached: {reason}")
    elif config.get("url"):
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not (folder / Path(config["url"]).name).is_file():
            reason = reachable(config["url"])
            if reason is not None:
                raise no_pretrained(name, f"{config['url']} cannot be reached: {reason}")
    else:
        raise no_pretrained(name, "timm names no weights for it")
    try:
        return _create(name, image_size, pretrained=True, **source)
    except ModelError as error:
        if image_size is not None:
            raise
        raise no_pretrained(name, error.found or error.what) from error


def _no_other_size(name: str, image_size: int, error: Exception) -> ModelError:
    return ModelError(
        f"{name} cannot be built for pictures of {image_size} x {image_size}",
        found=f"{type(error).__name__}: {str(error)[:200]}",
        fix="a family with a position table, such as vit, deit, eva or beit; or the own size",
    )
