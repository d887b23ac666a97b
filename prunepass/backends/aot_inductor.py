"""AOTInductor packages: a program compiled ahead of time to native code."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

import prunepass.kernels.sparse_linear  # noqa: F401  (operators a package may call)
from prunepass.backends.archives import check_archive
from prunepass.errors import BackendError, UsageError, first_line
from prunepass.graph.edit import open_module, seal
from prunepass.ops.selective_scan import SCAN, scan_loop
from prunepass.ops.token_places import (
    GRID,
    LINE,
    REORDER,
    along_line,
    at_places,
    in_order,
    over_grid,
)

CPU = torch.device("cpu")
DEVICES = ("cpu", "cuda")
_FILE = "model.pt2"
_WRITTEN_OUT = {SCAN: scan_loop, LINE: along_line, GRID: over_grid, REORDER: in_order}


@dataclass(frozen=True)
class AotInductorEngine:
    """A loaded AOTInductor package.

    Inputs that lie elsewhere are copied to its device. Outputs stay there where one of the inputs
    was there already, as a cache is that goes from call to call; else they are where inputs were.

    Attributes:
        model: The loaded package.
        path: Its file.
        device: Where it computes.
    """

    model: Any
    path: Path | None
    device: torch.device = CPU

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            result = self.model(*(x.to(self.device) for x in inputs))
        found = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        if any(x.device.type == self.device.type for x in inputs):
            return found
        return tuple(y.cpu() for y in found)


@dataclass(frozen=True)
class AotInductorBackend:
    """Compiles with `torch._inductor.aoti_compile_and_package`.

    Attributes:
        options: Inductor configuration for the compilation.
        device: Where its packages compute, one of `DEVICES`; None for where a program's tensors
            are.
    """

    options: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    name: str = "aot_inductor"

    def __post_init__(self) -> None:
        if self.device not in (None, *DEVICES):
            raise UsageError(
                f"AOTInductor packages do not compute on {self.device!r} here",
                found=f"device={self.device!r}",
                fix=f"one of {', '.join(DEVICES)}",
            )

    def unavailable(self) -> str | None:
        """None, or that no C++ compiler or no GPU is there."""
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            return "no C++ compiler was found (g++ or clang++)"
        if self.device == "cuda" and not torch.cuda.is_available():
            return "PyTorch sees no CUDA device here, which a package for one is compiled on"
        return None

    def build(self, program: ExportedProgram, folder: Path) -> AotInductorEngine:
        """The program as an AOTInductor package `model.pt2`.

        Raises:
            BackendError: No compiler is there, or the compilation failed.
        """
        reason = self.unavailable()
        if reason:
            raise BackendError(
                "cannot build an AOTInductor engine", found=reason, fix="install g++"
            )
        path = folder / _FILE
        try:
            with torch.no_grad():
                torch._inductor.aoti_compile_and_package(
                    moved(_written_out(program), self.device),
                    package_path=str(path),
                    inductor_configs=self.options,
                )
        except Exception as error:
            raise BackendError(
                "AOTInductor could not compile the program",
                found=f"{type(error).__name__}: {first_line(error)}",
                fix="--backend onnx",
            ) from error
        return self.load(folder)

    def load(self, folder: Path) -> AotInductorEngine:
        """The package in a folder.

        Raises:
            BackendError: The file is missing, damaged or made for another machine.
        """
        path = folder / _FILE
        check_archive(path)
        try:
            model = torch._inductor.aoti_load_package(str(path))
        except Exception as error:
            raise BackendError(
                f"cannot load {_FILE}",
                found=first_line(error),
                fix="build it again on this machine",
            ) from error
        return AotInductorEngine(model, path, _device_of(model))


def moved(program: ExportedProgram, device: str | None) -> ExportedProgram:
    """A program that computes on a device; the one given stays where it is.

    Args:
        program: Any program.
        device: Such as `cuda`, or None for where it is.
    """
    held = (*program.state_dict.values(), *program.constants.values(), *program.example_inputs[0])
    if device is None or {x.device.type for x in held if isinstance(x, Tensor)} == {device}:
        return program
    # The pass moves a program in place: it gets one that shares nothing but weights.
    made = move_to_device_pass(seal(open_module(program), program), device)
    made.graph_module.recompile()
    return made


def _device_of(model: Any) -> torch.device:
    """Where a loaded package computes, by what was written into it."""
    kind = model.loader.get_metadata().get("AOTI_DEVICE_KEY", "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else CPU


def _written_out(program: ExportedProgram) -> ExportedProgram:
    """The program with operations of ours in terms of torch's own."""
    module = open_module(program)
    ours = [node for node in module.graph.nodes if node.target in _WRITTEN_OUT]
    names: dict[tuple[int, ...], str] = {}
    for node in ours:
        node.target = _WRITTEN_OUT[node.target]
        if node.target is in_order:
            # As a tensor made on the way an order would clash with others of its name.
            order = tuple(node.args[1])
            if order not in names:
                names[order] = f"order_{len(names)}"
                module.register_buffer(names[order], torch.tensor(order), persistent=False)
            with module.graph.inserting_before(node):
                node.args = (node.args[0], module.graph.get_attr(names[order]))
            node.target = at_places
    return seal(module, program) if ours else program
