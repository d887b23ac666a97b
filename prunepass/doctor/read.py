"""From a path to the graphs that lie there."""

from __future__ import annotations

import zipfile
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
    graphs = [file for file in found if not is_compiled(file)]
    if not found:
        raise ModelError(
            f"{path} holds no graph",
            found="no .onnx, .pt2 or .ep file in it",
            fix="a bundle, or the path of an ONNX file or a program",
        )
    return tuple(graphs or found)


def is_compiled(path: Path) -> bool:
    """Whether a file is a package of AOTInductor: code, with no graph in it."""
    if path.suffix != ".pt2" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def kind_of(path: Path) -> str:
    """What a file is by its name: `onnx` or `program`."""
    return "program" if path.suffix in (".pt2", ".ep") else "onnx"


def _one(path: Path) -> View:
    if kind_of(path) == "program":
        from prunepass.doctor.read_program import read_program

        return read_program(path)
    from prunepass.doctor.read_onnx import read_onnx

    return read_onnx(path)
