"""A model that a function in a user's Python file builds."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from prunepass.errors import ModelError, nearest
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.weights import seeded

UNKNOWN = Preprocessing(height=224, width=224, resize=256)


def load_from_file(spec: str) -> tuple[nn.Module, Preprocessing]:
    """What the function returns, and the preprocessing that the module names.

    The preprocessing comes from the module's attribute `pretrained_cfg` or `default_cfg`, a
    mapping as timm's models carry it. Without one: 224 x 224 pixels, the centre of a bicubic
    resize to 256, mean and std 0.5.

    Args:
        spec: `path/to/file.py:function`; the function takes no arguments.

    Raises:
        ModelError: the file or the function is missing, the user's code raises, or what comes
            back is no nn.Module.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"there is no file {file}", found=spec, fix="path/to/file.py:function")
    with _importable(path.resolve().parent), seeded():
        function = _function(path, name)
        with _reported(path, f"{name}()"):
            module = function()
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{spec} gives no model",
            found=f"a {type(module).__name__}",
            fix="return a torch.nn.Module",
        )
    for attribute in ("pretrained_cfg", "default_cfg"):
        config: Any = getattr(module, attribute, None)
        config = config.to_dict() if hasattr(config, "to_dict") else config
        if isinstance(config, Mapping) and config:
            return module, Preprocessing.from_timm(config)
    return module, UNKNOWN


def _function(path: Path, name: str) -> Callable[[], Any]:
    """The function of that name, from the file imported anew under a private module name."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    private = f"_prunepass_model_{digest}"
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None:
        raise ModelError(f"Python cannot import {path}", found="no loader", fix="a .py file")
    imported = importlib.util.module_from_spec(spec)
    # It stays in sys.modules: dataclasses, pickle and torch.export look classes up there.
    sys.modules[private] = imported
    try:
        with _reported(path, "importing it"):
            # Not loader.exec_module: it leaves a __pycache__ beside the file, and takes an edit
            # within the same second for no edit.
            exec(compile(path.read_bytes(), str(path), "exec"), imported.__dict__)
    except ModelError:
        del sys.modules[private]
        raise
    names = [n for n, value in vars(imported).items() if callable(value) and n[:1] != "_"]
    function = getattr(imported, name, None)
    if not callable(function):
        raise ModelError(
            f"{path} has no function {name!r}",
            found=f"{len(names)} functions and classes",
            fix="one of " + nearest(name, names) if names else "define it",
        )
    required = [
        parameter.name
        for parameter in _parameters(function)
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ModelError(
            f"{name} in {path} cannot be called without arguments",
            found=f"it asks for {', '.join(required)}",
            fix="a function that takes none and returns the model",
        )
    return function  # type: ignore[no-any-return]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some callables of C have no signature: calling them tells
        return []


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A stretch in which the files beside the user's can be imported, as when it runs itself."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _reported(path: Path, doing: str) -> Iterator[None]:
    """Turns whatever the user's code raises into a ModelError with file and line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{path} failed while {doing}" if doing == "importing it" else f"{doing} failed",
            found=f"{type(error).__name__} at {_place(path, error)}: {str(error)[:200]}",
            fix=f"run {path} by itself to see the whole trace",
        ) from error


def _place(path: Path, error: BaseException) -> str:
    """File and line: the innermost that lies in the user's own file, else the innermost."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"
