"""What a backend and an engine are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.export import ExportedProgram

from prunepass.graph.parts import Part


class Engine(Protocol):
    """A program ready to run."""

    @property
    def path(self) -> Path | None:
        """The file it was loaded from, None if it lives in memory only."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs for one batch of inputs."""


@dataclass(frozen=True)
class NodeTime:
    """How long a node of an engine takes.

    Attributes:
        name: Of the node.
        operator: What it does, in words of the backend.
        part: Where it belongs.
        seconds: Of one run, the median of several.
    """

    name: str
    operator: str
    part: Part
    seconds: float


class Backend(Protocol):
    """A way from a program to an engine."""

    @property
    def name(self) -> str:
        """How the command line and bundles call it."""

    def unavailable(self) -> str | None:
        """None, or why it cannot be used here, as a sentence that says how to get it."""

    def build(self, program: ExportedProgram, folder: Path) -> Engine:
        """The engine of a program, its files written into a folder that exists."""

    def load(self, folder: Path) -> Engine:
        """The engine that `build` wrote into a folder."""
