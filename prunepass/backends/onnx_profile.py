"""Where the time of an ONNX engine goes: ONNX Runtime's own profile, by part of the model."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_parts import NodeOfFile, nodes_of, parts_of_values, spread
from prunepass.backends.protocol import NodeTime
from prunepass.errors import BackendError
from prunepass.graph.parts import Part

_SUFFIX = "_kernel_time"
UNKNOWN = Part("unknown", "other")


def profile_onnx(
    backend: OnnxBackend, folder: Path, inputs: Sequence[Tensor], *, runs: int, warm_up: int = 3
) -> list[NodeTime]:
    """Seconds of each node of one run, the median of several.

    Args:
        backend: How the engine is run.
        folder: Of an engine.
        inputs: One batch.
        runs: That are measured.
        warm_up: Runs before that are not.

    Raises:
        BackendError: The engine cannot be loaded, or its file does not tell parts.
    """
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        optimised = place / "optimised.onnx"
        engine = backend.load(folder, profile=place / "profile", optimised=optimised)
        for _ in range(warm_up + runs):
            engine(*inputs)
        events = json.loads(Path(engine.session.end_profiling()).read_text(encoding="utf-8"))
        run_nodes = nodes_of(onnx.load(str(optimised), load_external_data=False))
    assert engine.path is not None
    file_nodes = nodes_of(onnx.load(str(engine.path), load_external_data=False))
    known = parts_of_values(file_nodes)
    if not known:
        raise BackendError(
            f"{folder} does not tell which part of the model a node belongs to",
            found="no such metadata in its nodes: an earlier version wrote it",
            fix="compile again",
        )
    return _times(events, run_nodes, spread(run_nodes, known), runs, warm_up)


def _times(
    events: list[dict[str, Any]], nodes: Sequence[NodeOfFile], belongs: dict[str, Part], runs: int,
    warm_up: int,
) -> list[NodeTime]:  # fmt: skip
    """Medians of the last runs; nodes inside of loops count with the loop."""
    taken: dict[str, list[float]] = {node.name: [] for node in nodes}
    for event in events:
        name = str(event.get("name", "")).removesuffix(_SUFFIX)
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and name in taken:
            taken[name].append(event["dur"] / 1e6)
    return [
        NodeTime(
            name=node.name,
            operator=node.operator,
            part=belongs.get(node.name, UNKNOWN),
            seconds=statistics.median(taken[node.name][warm_up:]),
        )
        for node in nodes
        if len(taken[node.name]) == warm_up + runs
    ]
