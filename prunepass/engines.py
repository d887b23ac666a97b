"""Engines: built and examined, held against their programs, loaded from a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.agreement import ENGINE, Limit, differences_by_example
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.protocol import Backend, Engine
from prunepass.backends.table import backend as find_backend
from prunepass.backends.tensorrt import missing, onnx_engine
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle import Manifest, read_manifest
from prunepass.bundle_files import check_digests, writing
from prunepass.doctor.before_building import check
from prunepass.doctor.findings import Finding
from prunepass.errors import BackendError, UsageError
from prunepass.specialise import specialise


def available(name: str | Backend) -> Backend:
    """The backend of a name, or a backend with settings of its own, if it can be used here.

    Raises:
        UsageError: The name is unknown.
        BackendError: What it needs is missing.
    """
    chosen = find_backend(name) if isinstance(name, str) else name
    reason = chosen.unavailable()
    if reason:
        there = getattr(chosen, "device", None) == "cuda"
        raise BackendError(
            f"backend {chosen.name!r} cannot be used here", found=reason,
            fix="--device cpu" if there else "--backend eager",
        )  # fmt: skip
    return chosen


def check_kind(backend: str | Backend, kind: torch.dtype) -> None:
    """Nothing, if what runs an engine here computes with weights of a kind.

    ONNX Runtime moves and casts bfloat16 on a CPU, but has no sum, product or norm of it there:
    `doctor/onnxruntime_kernels.txt`. It runs what is for TensorRT, too, where that is missing.

    Raises:
        UsageError: It does not.
    """
    chosen = available(backend)
    here = isinstance(chosen, OnnxBackend) and chosen.providers == ("CPUExecutionProvider",)
    instead = chosen.name == "tensorrt" and missing("tensorrt") is not None
    if kind is torch.bfloat16 and (here or instead):
        raise UsageError(
            f"backend {chosen.name!r} cannot compute in bfloat16 here",
            found="bfloat16 weights, of which ONNX Runtime has no product or sum on a CPU",
            fix="--dtype float32, or --backend aot_inductor, which computes in bfloat16",
        )


def build(
    program: ExportedProgram, *, backend: str = "onnx", folder: str | Path, batch: int | None = None
) -> Engine:
    """The engine of a program; its files go into `folder`, which is made if it is not there.

    Args:
        program: Any program, rewritten or not.
        backend: Name of a backend.
        folder: Where its files go.
        batch: Fixes the batch size.

    Raises:
        UsageError: The backend is unknown, or the folder cannot be written.
        BackendError: The backend is missing or failed.
    """
    chosen = available(backend)
    place = Path(folder)
    final = program if batch is None else specialise(program, batch=batch)
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        return examined(chosen, final, place)[0]


def examined(
    backend: Backend, program: ExportedProgram, folder: Path
) -> tuple[Engine, tuple[Finding, ...]]:
    """The engine of a program, and what the doctor says of it that does not stop a build.

    An ONNX file is examined before a session is made of it.

    Raises:
        UnsupportedGraph: Something would fail on the target, or be wrong without a word.
        BackendError: The backend failed.
    """
    if backend.name == "tensorrt":
        told = check(program, ("onnxscript",))
        engine = backend.build(program, folder)
        return engine, told + check(next(folder.glob("*.onnx")), ("tensorrt",))
    if not isinstance(backend, OnnxBackend):
        return backend.build(program, folder), ()
    told = check(program, ("onnxscript",))
    backend.write(program, folder)
    if backend.providers == ("CPUExecutionProvider",):
        told += check(next(folder.glob("*.onnx")), ("onnxruntime",))
    return backend.load(folder), told


def check_engine(
    engine: Engine,
    part: str,
    inputs: tuple[Tensor, ...],
    told: Sequence[Tensor],
    *,
    limit: Limit = ENGINE,
    near_ties: float = 0.0,
    typical: bool = False,
) -> float:
    """How far an engine is from its program, if that is not too far.

    In the place of an engine that is not built yet, its ONNX file is run.

    Args:
        engine: The engine.
        part: What it is called in an error.
        inputs: What it is run on, axis 0 of the first the examples.
        told: What its program says to them.
        limit: How far is right, unless the precision of the engine explains more.
        near_ties: What is right anyway, where a near tie of scores may fall differently.
        typical: Whether the median over examples counts, since such a tie may fall differently in
            one of them, or all of them do.

    Raises:
        BackendError: It is too far, or says something of another shape.
    """
    here = onnx_engine(engine.path.parent) if isinstance(engine, UnbuiltEngine) else engine
    found = here(*inputs)
    shapes, right = ([list(x.shape) for x in outputs] for outputs in (found, told))
    if shapes != right:
        raise _disagreement(part, f"outputs of shapes {shapes}, {right} are right")
    each = differences_by_example(found, told, examples=len(inputs[0]))
    middle = each.min() if len(each) < 3 else each.median()
    gap = float(middle if typical else each.max())
    most = max(limit.of(told), near_ties, tolerance(engine))
    if not gap <= most:
        shown = f"a relative difference of {gap:.1e}, at most {most:.0e} is right"
        raise _disagreement(part, f"{shown}, for inputs {list(inputs[0].shape)}")
    return gap


def tolerance(engine: Engine) -> float:
    """The relative difference that the precision of an engine explains, 0 where it says none."""
    return float(getattr(engine, "tolerance", 0.0))


def load_engines(
    folder: Path, *, threads: int | None = None, parts: Sequence[str] = ("dense", "compressed")
) -> tuple[Manifest, dict[str, Engine]]:
    """The manifest of a bundle and its engines, `dense` and `compressed`, or those asked for.

    Raises:
        ModelError: The folder is no bundle, or a file of it was changed.
        BackendError: An engine cannot be loaded.
    """
    manifest = read_manifest(folder)
    check_digests(folder)
    settings = {"threads": threads} if threads and manifest.backend == "onnx" else {}
    chosen = find_backend(manifest.backend, **settings)
    if threads and not settings:
        torch.set_num_threads(threads)
    return manifest, {part: chosen.load(folder / part) for part in parts}


def _disagreement(part: str, found: str) -> BackendError:
    return BackendError(
        f"the {part} engine disagrees with its program", found=found,
        fix="another backend, and report the model",
    )  # fmt: skip
