"""Eager PyTorch: the program itself, run node by node. The reference for the others."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

import prunepass.kernels.sparse_linear
import prunepass.ops.selective_scan
import prunepass.ops.token_places  # noqa: F401
from prunepass.backends.archives import check_program
from prunepass.errors import BackendError, first_line

_FILE = "model.pt2"


@dataclass(frozen=True)
class EagerEngine:
    """A program run by PyTorch without compilation."""

    module: torch.nn.Module
    path: Path | None = None

    @classmethod
    def of(cls, program: ExportedProgram, path: Path | None = None) -> EagerEngine:
        """A program as an engine."""
        return cls(program.module(check_guards=False), path)

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
        save_program(program, folder)
        return self.load(folder)

    def load(self, folder: Path) -> EagerEngine:
        """The program saved in a folder.

        Raises:
            BackendError: The file is missing, damaged, or would unpickle more than tensors.
        """
        return EagerEngine.of(load_program(folder), folder / _FILE)


def save_program(program: ExportedProgram, folder: Path) -> None:
    """Writes a program into a folder that exists, as `model.pt2`."""
    # Written to a file, torch's archive ends the process where the disk is full.
    archive = io.BytesIO()
    torch.export.save(program, archive)
    (folder / _FILE).write_bytes(archive.getbuffer())


def load_program(folder: Path) -> ExportedProgram:
    """The program saved in a folder.

    Raises:
        BackendError: The file is missing, damaged, or would unpickle more than tensors.
    """
    path = folder / _FILE
    check_program(path)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise BackendError(
            f"cannot load {_FILE}", found=first_line(error, most=200), fix="build it again"
        ) from error
