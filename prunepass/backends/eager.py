"""Eager PyTorch: the program itself, run node by node. The reference for the others."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

import prunepass.kernels.sparse_linear
import prunepass.ops.selective_scan
import prunepass.ops.token_places  # noqa: F401
from prunepass.errors import BackendError

_FILE = "model.pt2"


@dataclass(frozen=True)
class EagerEngine:
    """A program run by PyTorch without compilation."""

    module: torch.nn.Module
    path: Path | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            result = self.module(*inputs)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)


@dataclass(frozen=True)
class EagerBackend:
    """Saves with `torch.export.save`, runs with PyTorch."""

    name: str = "eager"

    def unavailable(self) -> str | None:
        """None: it is always there."""
        return None

    def build(self, program: ExportedProgram, folder: Path) -> EagerEngine:
        """The program, saved as `model.pt2`."""
        path = folder / _FILE
        # Written to a file, torch's archive ends the process where the disk is full.
        archive = io.BytesIO()
        torch.export.save(program, archive)
        path.write_bytes(archive.getbuffer())
        return self.load(folder)

    def load(self, folder: Path) -> EagerEngine:
        """The program saved in a folder.

        Raises:
            BackendError: The file is missing or damaged.
        """
        return EagerEngine(program_in(folder).module(check_guards=False), folder / _FILE)


def program_in(folder: Path) -> ExportedProgram:
    """The program saved in a folder.

    Raises:
        BackendError: The file is missing or damaged.
    """
    path = folder / _FILE
    if not zipfile.is_zipfile(path):
        raise BackendError(
            f"cannot load {_FILE}",
            found="it is damaged" if path.exists() else "there is no such file",
            fix="build it again",
        )
    try:
        return torch.export.load(path)
    except Exception as error:
        raise BackendError(
            f"cannot load {_FILE}", found=str(error).splitlines()[0][:200], fix="build it again"
        ) from error
