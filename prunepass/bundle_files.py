"""The files of a bundle: written whole or not at all, and known by their digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunepass.errors import ModelError, PrunepassError, UsageError

DIGESTS = "digests.json"
_LITTLE = 1 << 20
"""Bytes below which a disk counts as full."""


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
        raise UsageError(
            f"cannot write {folder}", found=str(error), fix="another folder"
        ) from error
    try:
        with writing(folder):
            yield scratch
            os.chmod(scratch, 0o755)
            # Somebody else may have written there while this block ran.
            check_free(folder, force=force)
            _put(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A stretch that writes into `folder`; what the disk refuses is told in one way.

    Raises:
        UsageError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except Exception as error:
        # Libraries tell of a full disk in their own ways, mostly not as an OSError.
        full = shutil.disk_usage(folder.parent).free < _LITTLE
        if not full and (isinstance(error, PrunepassError) or not isinstance(error, OSError)):
            raise
        raise UsageError(
            f"cannot write {folder}",
            found="the disk is full" if full else str(error),
            fix="free space, or another folder",
        ) from error


def _put(scratch: Path, folder: Path) -> None:
    """Renames `scratch` to `folder`; what was there is gone afterwards, or back if that failed."""
    if not folder.exists():
        scratch.rename(folder)
        return
    old = scratch.with_name(f"{scratch.name}.old")
    folder.rename(old)
    try:
        scratch.rename(folder)
    except BaseException:
        if not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


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


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, then renames it, so that it is never half there."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise UsageError(f"cannot write {path}", found=str(error), fix="another place") from error


def read_json(path: Path) -> Any:
    """What a JSON file of a bundle holds.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"cannot read {path}", found=str(error)[:200], fix="compile again"
        ) from error


def write_digests(folder: Path) -> None:
    """Writes SHA-256 of all files of a bundle into it, the last thing that is written there."""
    found = {name: digest(folder / name) for name in _files(folder)}
    write_text(folder / DIGESTS, json.dumps(found, indent=2))


def check_digests(folder: Path) -> None:
    """Nothing, if a bundle holds the files that were written and no others.

    This tells damage and exchanged files; who can write a whole bundle can write its digests too.

    Raises:
        ModelError: A file is missing, changed, or was added.
    """
    path, again = folder / DIGESTS, "compile again"
    if not path.is_file():
        raise ModelError(f"{folder} is damaged", found=f"no {DIGESTS}", fix=again)
    told = read_json(path)
    if not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()):
        raise ModelError(f"{path} is damaged", found="no names with digests", fix=again)
    here = _files(folder)
    for what, names in (("missing", set(told) - set(here)), ("added", set(here) - set(told))):
        if names:
            found = f"{what}: {', '.join(sorted(names))}"[:200]
            raise ModelError(f"{folder} is damaged", found=found, fix=again)
    for name in here:
        if digest(folder / name) != told[name]:
            raise ModelError(
                f"{folder} is damaged", found=f"{name} is not what was written", fix=again
            )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _files(folder: Path) -> list[str]:
    """Names of what a bundle holds besides its digests; what a file manager leaves is not its own.

    A link to a folder counts as a file, which no bundle has: what lies behind it is not followed.
    """
    names = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )
    return sorted(name for name in names if name != DIGESTS and not re.search(r"(^|/)\.", name))
