"""The sums of layer scores in a file, so that a second run goes on where the first one stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunepass.errors import UsageError, first_line


@dataclass(frozen=True)
class Checkpoint:
    """Sums over the first batches.

    Attributes:
        sums: Name -> float64 tensor.
        batches: How many batches are in them.
    """

    sums: Mapping[str, Tensor]
    batches: int


def read_checkpoint(path: Path, request: str) -> Checkpoint:
    """The sums of a file, or none yet where there is no such file.

    Args:
        path: What `write_checkpoint` wrote.
        request: What tells this request from others.

    Raises:
        UsageError: The file is damaged, or of another model or request.
    """
    if not path.exists():
        return Checkpoint({}, 0)
    fix = "another --checkpoint, or delete the file"
    try:
        data = torch.load(path, weights_only=True)
        found, sums, batches = data["request"], data["sums"], data["batches"]
    except Exception as error:
        raise UsageError(
            f"cannot read the checkpoint {path}", found=first_line(error, most=200), fix=fix
        ) from error
    if found != request:
        raise UsageError(
            f"the checkpoint {path} is of another model or other scores",
            found=f"{found}, this request is {request}",
            fix=fix,
        )
    return Checkpoint(dict(sums), int(batches))


def write_checkpoint(path: Path, request: str, state: Checkpoint) -> None:
    """Writes sums beside the file, then renames, so that a stop in between loses nothing.

    Raises:
        UsageError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.part")
    data = {"request": request, "sums": dict(state.sums), "batches": state.batches}
    try:
        with scratch.open("wb") as file:
            torch.save(data, file)
        scratch.replace(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise UsageError(f"cannot write {path}", found=str(error), fix="another place") from error
