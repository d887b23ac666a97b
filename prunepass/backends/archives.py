"""Files from elsewhere: read only where no name leads out of a folder and nothing unpickles."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch

from prunepass.errors import BackendError


def check_archive(path: Path) -> None:
    """Nothing, if an archive can be unpacked without writing anywhere else.

    Raises:
        BackendError: The file is missing or damaged, or holds a name that leads elsewhere.
    """
    if not path.is_file():
        raise BackendError(
            f"cannot load {path.name}", found="there is no such file", fix="compile again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise BackendError(
            f"cannot load {path.name}", found=f"it is damaged: {error}"[:200], fix="compile again"
        ) from error
    names = [entry.filename for entry in entries]
    for entry in entries:
        if leads_out(entry.filename) or stat.S_ISLNK(entry.external_attr >> 16):
            raise _refused(path, f"a name that leads elsewhere: {entry.filename!r}")
        if names.count(entry.filename) > 1:
            raise _refused(path, f"two files of one name: {entry.filename!r}")


def check_program(path: Path) -> None:
    """Nothing, if reading an exported program unpickles nothing but tensors.

    `torch.export.load` unpickles freely what an archive marks as pickled, objects, archives of
    older formats, and example inputs that do not load otherwise. No archive written here has those.

    Raises:
        BackendError: The archive is refused by `check_archive`, or holds one of them.

    Source: torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py of torch 2.15.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            place = PurePosixPath(name)
            if place.name.startswith(("custom_obj", "opaque_obj")):
                raise _refused(path, f"a pickled object: {name!r}")
            if place.name.endswith("_config.json") and _is_pickled(archive.read(name)):
                raise _refused(path, f"pickled weights: {name!r}")
            if place.suffix == ".pt":
                if "sample_inputs" not in place.parts:
                    raise _refused(path, f"weights of an older format: {name!r}")
                _check_tensors(path, archive.read(name), name)


def _is_pickled(config: bytes) -> bool:
    """Whether a list of tensors has one that is pickled, or is none."""
    try:
        rows = json.loads(config)["config"].values()
        return any(
            row["use_pickle"] is not False
            or not row["path_name"].startswith(("weight_", "tensor_"))
            for row in rows
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True


def _check_tensors(path: Path, content: bytes, name: str) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise _refused(path, f"something else than tensors: {name!r}") from error


def _refused(path: Path, found: str) -> BackendError:
    return BackendError(
        f"{path.name} is refused", found=found, fix="compile again, from a source you trust"
    )


def leads_out(name: str) -> bool:
    """Whether a relative name leads out of the folder it is looked up in."""
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return not name or any(p.is_absolute() or ".." in p.parts or p.drive for p in kinds)


def check_external(model: object, name: str) -> None:
    """Nothing, if the weights of an ONNX file lie in it or beside it.

    Args:
        model: An `onnx.ModelProto`, loaded without them.
        name: What to call it.

    Raises:
        BackendError: One lies elsewhere.
    """
    for tensor in model.graph.initializer:  # type: ignore[attr-defined]
        for entry in tensor.external_data:
            if entry.key == "location" and leads_out(entry.value):
                raise BackendError(
                    f"{name} is refused", found=f"weights outside of its folder: {entry.value!r}",
                    fix="compile again, from a source you trust",
                )  # fmt: skip
