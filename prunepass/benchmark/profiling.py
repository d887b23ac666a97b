"""Where the time of a bundle's engines goes, by site and by what is done there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prunepass.backends.eager import EagerBackend
from prunepass.backends.eager_profile import profile_eager
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_profile import profile_onnx
from prunepass.backends.protocol import NodeTime
from prunepass.backends.table import backend as find_backend
from prunepass.benchmark.subjects import COMPRESSED, DENSE, picture_inputs
from prunepass.bundle import read_manifest
from prunepass.errors import BackendError, UsageError
from prunepass.language.bench import CACHED, decoding_inputs
from prunepass.language.manifest import is_language_bundle, read_language_manifest
from prunepass.vlm.manifest import is_vlm_bundle


@dataclass(frozen=True)
class Profile:
    """Seconds of one run of one engine, by node; each the median of several.

    Attributes:
        nodes: Of the engine as it runs.
    """

    nodes: tuple[NodeTime, ...]

    @property
    def seconds(self) -> float:
        """Of all nodes; a run takes longer by what lies between them."""
        return sum(node.seconds for node in self.nodes)

    @property
    def sites(self) -> dict[str, float]:
        """Seconds by site."""
        return self._by(lambda node: node.part.site)

    @property
    def groups(self) -> dict[str, float]:
        """Seconds by what is done: `attention`, `mlp`, `scoring`, `gather` and so on."""
        return self._by(lambda node: node.part.group)

    @property
    def operators(self) -> dict[str, float]:
        """Seconds by operator of the backend, the longest first."""
        found = self._by(lambda node: node.operator)
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def parts(self) -> dict[str, dict[str, float]]:
        """Seconds by site, and there by what is done."""
        found: dict[str, dict[str, float]] = {}
        for node in self.nodes:
            mine = found.setdefault(node.part.site, {})
            mine[node.part.group] = mine.get(node.part.group, 0.0) + node.seconds
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data, milliseconds."""

        def ms(table: Mapping[str, float]) -> dict[str, float]:
            return {name: 1e3 * seconds for name, seconds in table.items()}

        return {
            "ms": 1e3 * self.seconds,
            "groups": ms(self.groups),
            "sites": {site: ms(groups) for site, groups in self.parts().items()},
            "operators": ms(self.operators),
        }

    def _by(self, key: Callable[[NodeTime], str]) -> dict[str, float]:
        found: dict[str, float] = {}
        for node in self.nodes:
            found[key(node)] = found.get(key(node), 0.0) + node.seconds
        return found


def profiles(
    folder: Path, *, batch: int = 1, threads: int | None = None, runs: int = 20
) -> dict[str, Profile]:
    """`dense` and `compressed` -> where the time of that engine goes.

    Args:
        folder: A bundle of pictures or of a language model.
        batch: Examples of a run.
        threads: Threads of an engine.
        runs: That are measured; the median of each node counts.

    Raises:
        ModelError: The folder is no bundle.
        UsageError: It is one of a vision-language model.
        BackendError: Its backend does not tell what a node takes, or not where it belongs.
    """
    name, inputs = _taken(folder, batch)
    settings = {"threads": threads} if threads and name == "onnx" else {}
    backend = find_backend(name, **settings)
    found: dict[str, Profile] = {}
    for part in (DENSE, COMPRESSED):
        nodes: Sequence[NodeTime]
        if isinstance(backend, OnnxBackend):
            nodes = profile_onnx(backend, folder / part, inputs, runs=runs)
        elif isinstance(backend, EagerBackend):
            nodes = profile_eager(backend.load(folder / part), inputs, runs=runs)
        else:
            raise BackendError(
                f"engines of {name} cannot be profiled",
                found="kernels that are fused across sites and carry no labels",
                fix="compile with --backend onnx, and profile that",
            )
        found[part] = Profile(tuple(nodes))
    return found


def _taken(folder: Path, batch: int) -> tuple[str, tuple[Tensor, ...]]:
    """The backend of a bundle, and random inputs of its engines."""
    if is_language_bundle(folder):
        told = read_language_manifest(folder)
        cached = min(CACHED, told.context - 1)
        return told.backend, decoding_inputs(told, batch=batch, cached=cached)
    if is_vlm_bundle(folder):
        raise UsageError(
            f"{folder} is the bundle of a vision-language model",
            found="four engines, and no dense ones beside them",
            fix=f"prunepass bench {folder} times the way to the first token",
        )
    manifest = read_manifest(folder)
    return manifest.backend, picture_inputs(manifest, manifest.batch or batch)
