"""Models of transformers from a folder or a hub id."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.errors import ModelError
from prunepass.sources.hub import cached_file, hub_unreachable, no_pretrained
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.weights import (
    read_weights,
    refuse_misfit,
    seeded,
)

_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling, as processor files write it
# What a checkpoint of picture and text has beside the vision tower.
_TEXT_KEYS = re.compile(
    r"(text_model|text_projection|text_encoder|text_embed|logit_scale|logit_bias)\b"
)


class PixelsToFeatures(nn.Module):
    """A transformers model that takes pictures [B, 3, H, W] as its one positional argument.

    Gives logits [B, classes] where the model classifies, else image embeddings or pooled
    features [B, C], else the class token [B, C].
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, pixel_values: Tensor) -> Tensor:
        outputs = self.model(pixel_values=pixel_values)
        features: Tensor = getattr(outputs, self.output)
        return features[:, 0] if self.output == "last_hidden_state" else features


def load_transformers(
    name: str, *, weights: str, file: Path | None, image_size: int | None
) -> tuple[nn.Module, Preprocessing]:
    """The transformers model behind a PixelsToFeatures, and its preprocessing.

    Attention is scaled_dot_product_attention where the model has it. Where the processor's
    pictures are of another size than the config's, or `image_size` asks for one, the position
    embeddings are resampled once, here, so that no program carries the resampling.

    Args:
        name: A folder with config.json, or an id of the Hugging Face hub.
        weights: `pretrained` (model.safetensors of the folder) or `random`; not looked at where
            there is a `file`.
        file: Weights of this model at its own input size.
        image_size: Input pixels a side where they are not the model's.

    Raises:
        ModelError: folder, config or weights cannot be read, the model is none of pictures, or
            it has no other input size.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"hf/{name} needs transformers",
            found=str(error),
            fix='pip install "prunepass[models]"',
        ) from error
    folder = _folder(name, needs_weights=weights == "pretrained" and file is None)
    with _quiet(transformers):
        config = _config(transformers, folder)
        model_class, config, output = _model_class(transformers, config, name)
        for flag in ("output_attentions", "output_hidden_states"):
            setattr(config, flag, False)
        state, label = _state(folder, name, weights, file)
        model = _build(model_class, config, state, label, name)
        if output == "pooler_output" and _has_no_pooler(model):
            output = "last_hidden_state"
        preprocessing = _preprocessing(transformers, folder, config)
        if image_size is not None:
            preprocessing = _at_size(preprocessing, image_size)
        wanted = (preprocessing.height, preprocessing.width)
        if wanted != _config_size(config):
            model = _resampled(model, model_class, config, wanted, name)
        wrapped = PixelsToFeatures(model, output).eval()
        if image_size is not None:
            _check_runs(wrapped, name, wanted)
    return wrapped, preprocessing


def _folder(name: str, *, needs_weights: bool) -> Path:
    """The local folder of the model: the one named, or the hub's cache after a download."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).is_dir():
        raise ModelError(
            f"{name} is no model folder of transformers",
            found="no config.json in it",
            fix="the folder that save_pretrained wrote",
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ModelError(
            f"there is no folder {name}",
            found="nothing at that path",
            fix="hf/FOLDER with config.json and model.safetensors, or hf/ID of the hub",
        )
    config = cached_file(name, ("config.json",))
    if config is not None and not (needs_weights and _weight_files(config.parent) is None):
        return config.parent
    reason = hub_unreachable()
    if reason is not None:
        if config is not None:
            raise no_pretrained(f"hf/{name}", f"the hub cannot be reached: {reason}")
        raise ModelError(
            f"cannot get the model {name}",
            found=f"no folder of that name, and the hub cannot be reached: {reason}",
            fix="hf/FOLDER with config.json and model.safetensors; with config.json alone, "
            "--weights random or --weights FILE",
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", *_download(needs_weights)]))
        if needs_weights and _weight_files(folder) is None:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:
        raise ModelError(
            f"cannot get the model {name} from the hub",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
            fix="an id that huggingface.co shows, or hf/FOLDER",
        ) from error
    return folder


def _download(needs_weights: bool) -> tuple[str, ...]:
    return ("model*.safetensors",) if needs_weights else ()


def _config(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"cannot read the config of {folder}",
            found=f"{type(error).__name__}: {str(error).strip()[:200]}",
            fix="a config.json whose model_type this transformers knows "
            f"({transformers.__version__})",
        ) from error


def _model_class(transformers: Any, config: Any, name: str) -> tuple[Any, Any, str]:
    """The class to build, its config and the name of the output that is wanted.

    In order: the class that the config names, where it is one of pictures alone; the vision
    tower of a model of picture and text, with its projection where it has one; the family's
    classifier; the family's bare model.
    """
    named = (getattr(config, "architectures", None) or [""])[0]
    found = getattr(transformers, named, None)
    if found is not None and "ForImageClassification" in named:
        return found, config, "logits"
    prefix = type(config).__name__.removesuffix("Config")
    if hasattr(config, "vision_config"):
        for suffix, output in (
            ("VisionModelWithProjection", "image_embeds"),
            ("VisionModel", "pooler_output"),
        ):
            tower = getattr(transformers, prefix + suffix, None)
            if tower is not None:
                vision = copy.deepcopy(config.vision_config)
                if output == "image_embeds" and hasattr(config, "projection_dim"):
                    vision.projection_dim = config.projection_dim
                return tower, vision, output
    if found is not None and named.endswith("VisionModelWithProjection"):
        return found, config, "image_embeds"
    if found is not None and getattr(found, "main_input_name", "") == "pixel_values":
        if named.endswith("Model"):
            return found, config, "pooler_output"
    elif not named or found is None:
        classifier = getattr(transformers, prefix + "ForImageClassification", None)
        if classifier is not None:
            return classifier, config, "logits"
        bare = getattr(transformers, prefix.removesuffix("Model") + "Model", None)
        if getattr(bare, "main_input_name", "") == "pixel_values":
            return bare, config, "pooler_output"
    raise ModelError(
        f"hf/{name} is no picture classifier or vision tower that prunepass knows",
        found=f"model_type {config.model_type!r}, architecture {named or 'not named'}",
        fix="a ...ForImageClassification, a ...VisionModel or a CLIP-like pair of towers",
    )


def _state(
    folder: Path, name: str, weights: str, file: Path | None
) -> tuple[dict[str, Tensor] | None, str]:
    """The tensors to load and the name of where they lie; None: random weights."""
    if file is not None:
        return read_weights(file), file.name
    if weights == "random":
        return None, "random"
    files = _weight_files(folder)
    if files is None:
        raise no_pretrained(f"hf/{name}", f"no {' or '.join(_WEIGHT_FILES)} in {folder}")
    state: dict[str, Tensor] = {}
    for path in files:
        if not path.is_file():
            raise no_pretrained(f"hf/{name}", f"{path.name}, which the index names, is missing")
        state.update(read_weights(path))
    return state, files[0].name


def _weight_files(folder: Path) -> list[Path] | None:
    """The files that hold the folder's weights, or None where there are none."""
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
    for name in _INDEX_FILES:
        if (folder / name).is_file():
            places = json.loads((folder / name).read_text())["weight_map"].values()
            return [folder / place for place in sorted(set(places))]
    return None


def _build(
    model_class: Any, config: Any, state: dict[str, Tensor] | None, label: str, name: str
) -> nn.Module:
    """The model with the state's values, strictly; with random ones where `state` is None.

    `from_pretrained` does the loading because it knows the names of older checkpoints.
    """
    if state is None:
        return _construct(model_class, config, name)
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


def _construct(model_class: Any, config: Any, name: str, **options: Any) -> nn.Module:
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


def _has_no_pooler(model: nn.Module) -> bool:
    return getattr(model, "pooler", True) is None


def _attention(model_class: Any) -> str:
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def _cannot_build(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"transformers cannot build hf/{name}",
        found=f"{type(error).__name__}: {str(error).strip()[:200]}",
        fix="check config.json: from_pretrained alone shows where it fails",
    )


def _config_size(config: Any) -> tuple[int, int] | None:
    """Height and width of the config's pictures, pixels; None where it has none."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None


def _preprocessing(transformers: Any, folder: Path, config: Any) -> Preprocessing:
    """What the folder's processor file says; without one, the family's defaults at the config's
    size, and where there are none, mean and std 0.5 without a crop."""
    stored: Mapping[str, Any] | None = None
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            if (folder / name).is_file():
                stored = json.loads((folder / name).read_text())
                stored = stored.get("image_processor", stored) if stored is not None else None
                break
        except (OSError, ValueError) as error:
            raise ModelError(
                f"cannot read {name} of {folder}", found=str(error), fix="mend or remove the file"
            ) from error
    default = _processor_defaults(transformers, config.model_type)
    if stored is None:
        height, width = _config_size(config) or (224, 224)
        size = {"height": height, "width": width}
        stored = {**default, "size": size, "crop_size": size}
    try:
        return _from_processor({**default, **stored}, _config_size(config) or (224, 224))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"cannot read the preprocessing of {folder}",
            found=f"{type(error).__name__}: {error}",
            fix="a preprocessor_config.json as transformers writes it",
        ) from error


def _from_processor(stored: Mapping[str, Any], own: tuple[int, int]) -> Preprocessing:
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
    from transformers.models.auto import image_processing_auto

    names = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
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


def _at_size(preprocessing: Preprocessing, side: int) -> Preprocessing:
    """The same at another input size, with the same share cropped."""
    from dataclasses import replace

    short = min(preprocessing.height, preprocessing.width)
    return replace(
        preprocessing,
        height=side,
        width=side,
        resize=max(side, preprocessing.resize * side // short),
    )


def _resampled(
    model: nn.Module, model_class: Any, config: Any, wanted: tuple[int, int], name: str
) -> nn.Module:
    """A copy of the model for pictures of height x width, its position tables resampled by the
    family's own `interpolate_pos_encoding`.

    Raises:
        ModelError: a tensor other than those tables depends on the picture size.
    """
    patch = getattr(config, "patch_size", None)
    native = _config_size(config)
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
    changed.image_size = wanted[0] if wanted[0] == wanted[1] else list(wanted)
    options = {"add_pooling_layer": False} if _has_no_pooler(model) else {}
    target = _construct(model_class, changed, name, **options)
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


def _check_runs(module: nn.Module, name: str, size: tuple[int, int]) -> None:
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, *size))
    except Exception as error:
        raise ModelError(
            f"hf/{name} cannot be built for pictures of {size[0]} x {size[1]}",
            found=f"{type(error).__name__}: {str(error).strip()[:200]}",
            fix="the model's own size",
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """A stretch without transformers' progress bars and load reports; ours says more."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
