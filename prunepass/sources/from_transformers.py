"""Models of transformers from a folder or a hub id."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunepass.errors import ModelError, first_line
from prunepass.sources.hub import cached_file, hub_unreachable, no_pretrained
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.transformers_build import build_model, construct, has_no_pooler
from prunepass.sources.transformers_processor import at_size, read_preprocessing
from prunepass.sources.transformers_size import check_runs, config_size, resampled_model
from prunepass.sources.weights import read_weights

_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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
    folder = read_folder(name, needs_weights=weights == "pretrained" and file is None)
    with silent(transformers):
        config = read_config(transformers, folder)
        model_class, config, output = _model_class(transformers, config, name)
        for flag in ("output_attentions", "output_hidden_states"):
            setattr(config, flag, False)
        _check_takes_pictures_alone(model_class, name)
        state, label = read_state(folder, name, weights, file)
        model = build_model(model_class, config, state, label, name)
        if output == "pooler_output" and has_no_pooler(model):
            output = "last_hidden_state"
        preprocessing = read_preprocessing(transformers, folder, config)
        if image_size is not None:
            preprocessing = at_size(preprocessing, image_size)
        wanted = (preprocessing.height, preprocessing.width)
        if wanted != config_size(config):
            options = {"add_pooling_layer": False} if has_no_pooler(model) else {}
            model = resampled_model(
                model,
                config,
                wanted,
                name=name,
                construct=partial(construct, model_class, name=name, **options),
            )
        wrapped = PixelsToFeatures(model, output).eval()
        if image_size is not None:
            check_runs(wrapped, name, wanted)
    return wrapped, preprocessing


def read_folder(name: str, *, needs_weights: bool) -> Path:
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
            found=f"{type(error).__name__}: {first_line(error, most=200)}",
            fix="an id that huggingface.co shows, or hf/FOLDER",
        ) from error
    return folder


def _download(needs_weights: bool) -> tuple[str, ...]:
    return ("model*.safetensors",) if needs_weights else ()


def has_class(spec: str, choose: Callable[[Any, Any], Any]) -> bool:
    """Whether a word names a model of transformers for which there is a class.

    Args:
        spec: `hf/FOLDER-or-ID`; any other word does not.
        choose: (transformers, config) -> a class, or None.

    Raises:
        ModelError: It names a folder of transformers that cannot be read.
    """
    if not spec.startswith("hf/"):
        return False
    try:
        import transformers
    except ImportError:
        return False
    folder = read_folder(spec.removeprefix("hf/"), needs_weights=False)
    with silent(transformers):
        return choose(transformers, read_config(transformers, folder)) is not None


def read_config(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,  # left open, it asks on the terminal
        )
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


def _check_takes_pictures_alone(model_class: Any, name: str) -> None:
    """Refuses a model whose forward asks for more than pictures."""
    demanded = [
        parameter.name
        for parameter in inspect.signature(model_class.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in ("self", "pixel_values")
    ]
    if demanded:
        raise ModelError(
            f"hf/{name} takes more than pictures",
            found=f"{model_class.__name__}.forward also needs {', '.join(demanded)}",
            fix="a file.py:function that builds a module which takes pictures alone",
        )


def read_state(
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


@contextmanager
def silent(transformers: Any) -> Iterator[None]:
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
