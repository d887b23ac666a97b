"""Weights: reproducible random ones, and files that are read without running code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from prunepass.errors import ModelError, UsageError

WORDS = ("pretrained", "random")
SAFETENSORS = (".safetensors",)
TORCH_FILES = (".pt", ".pth", ".bin")
_SEED = 0

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def seeded() -> Iterator[None]:
    """A stretch in which torch's CPU generator starts from a fixed seed; the caller's random
    numbers go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would seed CUDA generators too, which are not forked here.
        torch.default_generator.manual_seed(_SEED)
        yield


def weights_file(weights: str) -> Path | None:
    """The file that `weights` names, or None where it is `pretrained` or `random`.

    Raises:
        UsageError: neither one of the words nor a file of a known kind.
        ModelError: there is no such file.
    """
    if weights in WORDS:
        return None
    path = Path(weights)
    if path.suffix.lower() not in SAFETENSORS + TORCH_FILES:
        raise UsageError(
            "--weights is `pretrained`, `random` or a file",
            found=repr(weights),
            fix=f"one of the two words, or a file {' '.join(SAFETENSORS + TORCH_FILES)}",
        )
    if not path.is_file():
        raise ModelError(
            f"there is no weights file {weights}",
            found="a folder" if path.is_dir() else "nothing at that path",
            fix="--weights with an existing file, or --weights random",
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; pickled code is never run.

    A torch file holds a state dict, or a dict with one under `state_dict` or `model`. A prefix
    `module.` or `_orig_mod.` that all names share is taken off.

    Raises:
        ModelError: the file is truncated or of another kind, holds other things than tensors, or
            a tensor holds NaN or infinity.
    """
    read = _read_safetensors if path.suffix.lower() in SAFETENSORS else _read_torch
    state = read(path)
    if not state:
        raise ModelError(f"there are no weights in {path}", found="no tensors", fix="another file")
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    check_finite(state, path.name)
    return state


def apply_weights(
    module: nn.Module,
    path: Path,
    *,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> None:
    """Loads a file into the module in place, strictly: every name and shape must fit.

    Args:
        module: Takes the values in its own dtype.
        path: A file that `read_weights` reads.
        convert: From the file's names to the module's, tried where they do not fit as they are.

    Raises:
        ModelError: see `read_weights` and `check_fit`.
    """
    state = fitted(shapes(module), read_weights(path), name=path.name, convert=convert)
    module.load_state_dict(state, strict=True)


def fitted(
    expected: Shapes,
    state: dict[str, Tensor],
    *,
    name: str,
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The state dict with exactly the names and shapes of `expected`, converted if need be.

    A conversion may rename and reshape, but where a name stays, so must the number of values:
    timm's filters would also resample position tables of another picture size, silently.

    Raises:
        ModelError: see `check_fit`; it speaks of the file's own names.
    """
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found == dict(expected):
        return state
    resized = any(
        key in expected and state[key].numel() != torch.Size(expected[key]).numel() for key in state
    )
    if convert is not None and not resized:
        try:
            converted = dict(convert(dict(state)))
            if {key: tuple(value.shape) for key, value in converted.items()} == dict(expected):
                return converted
        except Exception:  # a filter that does not know these names fails in its own way
            pass
    check_fit(expected, found, name=name)
    return state


def check_fit(expected: Shapes, found: Shapes, *, name: str) -> None:
    """Compares names and shapes.

    Args:
        expected: Of the model.
        found: Of the file.
        name: The file's, for the message.

    Raises:
        ModelError: counts what is missing, unexpected and mis-shaped, naming three of each.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshaped = [
        f"{key} is {_size(found[key])}, the model has {_size(expected[key])}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    refuse_misfit(missing, unexpected, misshaped, name=name)


def refuse_misfit(
    missing: list[str], unexpected: list[str], misshaped: list[str], *, name: str
) -> None:
    """Raises ModelError unless the three lists are empty."""
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    found = [
        f"{len(keys)} {word} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for word, keys in parts.items()
        if keys
    ]
    if found:
        raise ModelError(
            f"the weights in {name} do not fit the model",
            found="; ".join(found),
            fix="name the MODEL that these weights were saved from, or --weights random",
        )


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Raises ModelError where a floating-point tensor holds NaN or infinity."""
    bad = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ModelError(
            f"the weights in {name} hold NaN or infinity",
            found=f"{len(bad)} of {len(state)} tensors ({', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''})",
            fix="weights from before the training diverged",
        )


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the module's state dict, by name."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"cannot read {path.name} without safetensors",
            found=str(error),
            fix="pip install safetensors",
        ) from error
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _broken(path, error) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the refusal says it
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = _refused(path, str(error))
        if reason is None:
            raise _broken(path, error) from error
        raise ModelError(
            f"{path.name} is refused: it is a pickle that could run code when it is read",
            found=reason,
            fix="where it was made: safetensors.torch.save_file(model.state_dict(), "
            f"{path.stem + '.safetensors'!r}), then --weights {path.stem}.safetensors",
        ) from error
    except Exception as error:  # zip, tar and pickle readers raise RuntimeError, EOFError and more
        raise _broken(path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
            break
    if not isinstance(stored, Mapping):
        raise _no_state_dict(path, f"a {type(stored).__name__}")
    for key, value in stored.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise _no_state_dict(path, f"{key!r}: {type(value).__name__}")
    return dict(stored)


def _refused(path: Path, message: str) -> str | None:
    """What a pickle asks for beyond tensors; None where it is no whole pickle at all."""
    asked = re.search(r"GLOBAL (\S+)", message)
    if asked is not None:
        return f"it asks for {asked[1]}; tensors, numbers, strings and containers are read"
    with path.open("rb") as file:
        return "a Python pickle, no torch file" if file.read(1) == b"\x80" else None


def _broken(path: Path, error: Exception) -> ModelError:
    # torch's unpickler answers with a page of advice that does not apply here.
    advice = isinstance(error, pickle.UnpicklingError)
    lines = ["no torch file"] if advice else str(error).strip().splitlines() or [""]
    return ModelError(
        f"cannot read the weights file {path}",
        found=f"{path.stat().st_size} bytes; {type(error).__name__}: {lines[0][:200]}",
        fix="fetch the file again: it is truncated, or of another kind than its name says",
    )


def _no_state_dict(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path.name} holds no state dict",
        found=found,
        fix="a dict of tensors by name, as it is or under `state_dict` or `model`",
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "one number"
