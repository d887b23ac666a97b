"""A bundle: the folder that holds a compiled model and needs no model source to run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunepass.errors import ModelError, PrunepassError, UsageError
from prunepass.plan import Plan

SCHEMA = 1
_KEYS = {"schema", "backend", "batch", "inputs", "outputs", "preprocessing", "model", "weights",
         "macs_dense", "macs"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        backend: Name of the backend of its engines.
        batch: Fixed batch size, or None.
        inputs: Name -> [shape, dtype]; the batch stands as 0 where it is free.
        outputs: The same for outputs.
        preprocessing: How a picture becomes an input, or None.
        model: What was compiled.
        weights: Where its weights came from.
        macs_dense: Multiply-accumulates of the dense engine, one example.
        macs: Those of the compressed engine.
    """

    backend: str
    batch: int | None
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    preprocessing: Mapping[str, Any] | None
    model: str
    weights: str
    macs_dense: int
    macs: int

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema": SCHEMA, **self.__dict__}, indent=2)


@contextlib.contextmanager
def written(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A scratch folder beside `folder` that takes its place when the block ends well.

    Whatever goes wrong inside, a full disk or a kill included, leaves no half bundle: the folder of
    before, if there was one, stays until the new one is complete.

    Raises:
        UsageError: The folder exists and `force` is not set, or it cannot be written.
    """
    check_free(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"cannot write {folder}", found=str(error), fix="another folder") from error
    try:
        yield scratch
        os.chmod(scratch, 0o755)
        if folder.exists():
            old = scratch.with_name(f"{scratch.name}.old")
            folder.rename(old)
            scratch.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(folder)
    except PrunepassError:
        raise
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}", found=str(error), fix="free space, or another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_free(folder: Path, *, force: bool) -> None:
    """Raises UsageError if a folder exists and may not be replaced."""
    if not folder.exists():
        return
    if not force:
        raise UsageError(
            f"{folder} exists", found="a folder or file of that name", fix="--force replaces it"
        )
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "bundle.json").is_file()):
        raise UsageError(
            f"{folder} is not a bundle, so it is not replaced",
            found="no bundle.json in it",
            fix="another folder",
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises:
        ModelError: The folder is no bundle, or one of another version.
    """
    path = folder / "bundle.json"
    if not folder.is_dir() or not path.is_file():
        raise ModelError(
            f"{folder} is not a bundle",
            found="no bundle.json" if folder.is_dir() else "no such folder",
            fix="`prunepass compile MODEL -o DIR` makes one",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}", found=str(error)[:200]) from error
    if not isinstance(data, dict) or set(data) != _KEYS:
        raise ModelError(f"{path} is damaged", found="wrong keys", fix="compile again")
    if data.pop("schema") != SCHEMA:
        raise ModelError(f"{path} is of another version", found="schema", fix="compile again")
    return Manifest(**data)


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ModelError: The file cannot be read.
        PlanError: It is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the plan {path}", found=str(error)[:200]) from error
    return Plan.from_json(text)


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, then renames it, so that it is never half there."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}", found=str(error), fix="another place") from error


Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and how much there is."""
