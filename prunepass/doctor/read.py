"""From a path to the graphs that lie there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prunepass.doctor.view import View
from prunepass.errors import ModelError

_SUFFIXES = (".onnx", ".pt2", ".ep")
_DEPTH = 4
"""Folders below a folder that are looked into: a model repository is model/version/file."""


def read(path: Path) -> Iterator[View]:
    """The views of a file, or of all graphs in a folder, one after the other.

    Raises:
        ModelError: There is nothing to read, or a file is broken.
    """
    for file in files(path):
        yield _one(file)


def files(path: Path) -> tuple[Path, ...]:
    """The files at a path that hold graphs.

    Raises:
        ModelError: There are none.
    """
    if not path.is_dir():
        return (path,)
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix in _SUFFIXES and len(file.relative_to(path).parts) <= _DEPTH
    )
    if not found:
        raise ModelError(
            f"{path} holds no graph",
            found="no .onnx, .pt2 or .ep file in it",
            fix="a bundle, or the path of an ONNX file or a program",
        )
    return tuple(found)


def kind_of(path: Path) -> str:
    """What a file is by its name: `onnx` or `program`."""
    return "program" if path.suffix in (".pt2", ".ep") else "onnx"


def _one(path: Path) -> View:
    if kind_of(path) == "program":
        from prunepass.doctor.read_program import read_program

        return read_program(path)
    from prunepass.doctor.read_onnx import read_onnx

    return read_onnx(path)
