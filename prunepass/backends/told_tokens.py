"""Asking an engine which tokens it keeps: its own graph, with these values as outputs too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch.fx.graph import CodeGen

from prunepass.backends import eager, onnx_told
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.protocol import Engine
from prunepass.errors import BackendError
from prunepass.graph import meta


@dataclass(frozen=True)
class TellingEngine:
    """An engine that also returns values from inside.

    Attributes:
        engine: Returns its own outputs, then what it tells.
        names: What it tells, e.g. `block[3].attention:reduce.kept`, in the order of outputs.
    """

    engine: Engine
    names: tuple[str, ...]

    def __call__(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name -> what it was for one batch of inputs."""
        found = self.engine(*inputs)
        return dict(zip(self.names, found[len(found) - len(self.names) :], strict=True))


def telling(backend: str, folder: Path) -> TellingEngine:
    """The engine that a backend wrote into a folder, asked for what it keeps.

    Raises:
        BackendError: Engines of this backend cannot be asked, or the engine cannot be loaded.
    """
    if backend not in _ASKED:
        raise BackendError(
            f"an engine of {backend} cannot be asked which tokens it keeps",
            found="a compiled package without its graph",
            fix=f"the same plan as ONNX: prunepass compile MODEL --plan {folder.parent}/plan.json "
            "-o DIR",
        )
    return _ASKED[backend](folder)


def _eager(folder: Path) -> TellingEngine:
    module = eager.load_program(folder).module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    graph = module.graph
    told = {label: node for label, node in meta.labelled(graph).items() if meta.is_told(label)}
    (output,) = graph.find_nodes(op="output")
    output.args = ((*output.args[0], *told.values()),)
    graph.set_codegen(CodeGen())
    module.recompile()
    return TellingEngine(eager.EagerEngine(module), tuple(told))


def _onnx(folder: Path) -> TellingEngine:
    model, names = onnx_told.asked(folder / "model.onnx")
    return TellingEngine(OnnxBackend().load_bytes(model, folder), names)


_ASKED: Mapping[str, Callable[[Path], TellingEngine]] = MappingProxyType(
    {"eager": _eager, "onnx": _onnx}
)
