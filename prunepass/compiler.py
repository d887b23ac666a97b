"""All of it in one call: capture, plan, apply, build both engines, check them, write the bundle."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.analyse.counting import macs_by_layer
from prunepass.analyse.flops import macs as count_macs
from prunepass.apply import apply_with_records
from prunepass.backends.eager import save_program
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.protocol import Backend, Engine
from prunepass.backends.table import backend as find_backend
from prunepass.backends.tensorrt import onnx_engine
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle import (
    Manifest,
    check_digests,
    check_free,
    read_manifest,
    write_digests,
    write_text,
    writing,
    written,
)
from prunepass.capturing import capture
from prunepass.doctor.before_building import check, one_line
from prunepass.doctor.findings import Finding
from prunepass.errors import BackendError, UsageError
from prunepass.measure.environment import environment
from prunepass.planners.budget import plan as make_plan
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE
from prunepass.plans import Action, Plain, Plan
from prunepass.records import PassRecord
from prunepass.report import Report
from prunepass.specialise import specialise

PROGRAM = "program"
"""Folder of a bundle with its programs, as PyTorch saves them."""
AGREEMENT = 1e-4
"""Largest relative difference between an engine and its program, fp32."""

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """A compiled model.

    Attributes:
        engine: The compressed engine.
        plan: What was done.
        report: What came of it.
        folder: The bundle.
        backend: What built the engines.
    """

    engine: Engine
    plan: Plan
    report: Report
    folder: Path
    backend: Backend

    @functools.cached_property
    def dense(self) -> Engine:
        """The dense engine, for comparison; loaded when first asked for, it holds all weights."""
        return self.backend.load(self.folder / "dense")


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


def compile(
    model: nn.Module | ExportedProgram,
    inputs: tuple[Tensor, ...],
    *,
    method: str = DEFAULT,
    flops: float | None = None,
    plan: Plan | None = None,
    action: Action | None = None,
    at: Sequence[int] | None = None,
    keep: float | Sequence[float] | None = None,
    options: Mapping[str, Plain] | None = None,
    backend: str | Backend = "onnx",
    folder: str | Path,
    batch: int | None = None,
    force: bool = False,
    name: str | None = None,
    weights: str = "given",
    preprocessing: Mapping[str, Any] | None = None,
    keep_program: bool = True,
    on_stage: Stage | None = None,
) -> Compiled:
    """A compiled model, as a bundle in `folder`.

    Args:
        model: A module in eval mode, or a captured program.
        inputs: Example inputs, axis 0 the batch.
        method: Name of a method; ignored if a plan is given.
        flops: MACs wanted relative to the dense model, in (0, 1].
        plan: Carries out this plan instead of making one.
        action: `drop` or `merge`, None for the method's own.
        at: Blocks where tokens are reduced, None for the method's own.
        keep: Share of the tokens that stays at each of them, in place of `flops`.
        options: Options of the method's rule.
        backend: Name of a backend, or one with settings of its own.
        folder: The bundle to write.
        batch: Fixes the batch size, None leaves it free.
        force: Whether an existing bundle is replaced.
        name: What to call the model in the report.
        weights: Where its weights came from, for the report.
        preprocessing: How a picture becomes an input, stored in the bundle.
        keep_program: Whether the bundle holds the dense program too, which `prunepass verify`
            compares engines with; it is about as large as one engine.
        on_stage: Told the name of each stage as it begins.

    Raises:
        PrunepassError: One of its kinds, see `prunepass.errors`.
    """
    place = Path(folder)
    chosen = available(backend)
    check_free(place, force=force)
    clock = Clock(on_stage)
    with clock("capture"):
        program = model if isinstance(model, ExportedProgram) else capture(model, inputs)
    with clock("plan"):
        made = plan or make_plan(
            program, method=method, flops=flops, action=action, at=at, keep=keep, options=options
        )
    with clock("rewrite"):
        smaller, records = apply_with_records(program, made)
    return assemble(
        program, smaller, made, records, chosen, place, clock=clock, batch=batch, force=force,
        name=name or type(model).__name__, weights=weights, preprocessing=preprocessing,
        keep_program=keep_program,
    )  # fmt: skip


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


def assemble(
    program: ExportedProgram,
    smaller: ExportedProgram,
    plan: Plan,
    records: list[PassRecord],
    backend: Backend,
    folder: Path,
    *,
    clock: Clock,
    batch: int | None,
    force: bool,
    name: str,
    weights: str,
    preprocessing: Mapping[str, Any] | None,
    keep_program: bool = True,
) -> Compiled:
    """Builds both engines of a bundle, checks them against their programs, writes it all down."""
    with written(folder, force=force) as scratch:
        differences, told = {}, {}
        for part, source in (("dense", program), ("compressed", smaller)):
            with clock(f"build {part}"):
                (scratch / part).mkdir()
                final = source if batch is None else specialise(source, batch=batch)
                engine, told[part] = examined(backend, final, scratch / part)
            with clock(f"check {part}"):
                differences[part] = _difference(runs_here(engine), final, part)
            del engine  # Two sessions at once would hold all weights twice.
            # The compressed program is the plan's, but for a smaller picture, which has no steps.
            needed = part == "dense" or plan.method == DOWNSAMPLE
            if keep_program and needed and backend.name != "eager":
                (scratch / PROGRAM / part).mkdir(parents=True)
                save_program(source, scratch / PROGRAM / part)
        report = Report(
            model=name,
            weights=weights,
            method=plan.method,
            backend=backend.name,
            batch=batch,
            macs_dense=count_macs(program),
            macs=count_macs(smaller),
            parameters=sum(p.numel() for p in program.parameters()),
            tokens={k: v for record in records for k, v in record.tokens.items()},
            difference_dense=differences["dense"],
            difference=differences["compressed"],
            seconds=dict(clock.seconds),
            findings=tuple(dict.fromkeys(one_line(f) for f in told["compressed"])),
            parts={"dense": macs_by_layer(program), "compressed": macs_by_layer(smaller)},
            environment=environment(),
            always_kept=next((r.always_kept for r in records if r.tokens), ()),
        )
        manifest = Manifest(
            backend=backend.name,
            batch=batch,
            inputs=_signature(program, "USER_INPUT"),
            outputs=_signature(program, "USER_OUTPUT"),
            preprocessing=preprocessing,
            model=name,
            weights=weights,
            macs_dense=report.macs_dense,
            macs=report.macs,
        )
        write_text(scratch / "plan.json", plan.to_json())
        write_text(scratch / "report.json", report.to_json())
        write_text(scratch / "bundle.json", manifest.to_json())
        write_digests(scratch)
    return Compiled(backend.load(folder / "compressed"), plan, report, folder, backend)


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


def available(name: str | Backend) -> Backend:
    """The backend of a name, or a backend with settings of its own, if it can be used here.

    Raises:
        UsageError: The name is unknown.
        BackendError: What it needs is missing.
    """
    chosen = find_backend(name) if isinstance(name, str) else name
    reason = chosen.unavailable()
    if reason:
        raise BackendError(
            f"backend {chosen.name!r} cannot be used here", found=reason, fix="--backend eager"
        )
    return chosen


class Clock:
    """Seconds by stage."""

    def __init__(self, on_stage: Stage | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_stage = on_stage

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._on_stage is not None:
            self._on_stage(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)


@dataclass(frozen=True)
class _InPlace:
    """The ONNX file of an engine that is not built yet, run by ONNX Runtime."""

    engine: Engine
    tolerance: float
    path: Path | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.engine(*inputs)


def runs_here(engine: Engine) -> Engine:
    """An engine, or what runs here in the place of one that is not built yet."""
    if not isinstance(engine, UnbuiltEngine):
        return engine
    return _InPlace(onnx_engine(engine.path.parent), engine.tolerance)


def _difference(engine: Engine, program: ExportedProgram, part: str) -> float:
    """Largest relative difference between an engine and its program, of an example each.

    The median over examples, since a near tie of scores may fall differently in one of them; the
    dense engine has no ties to fall, so there it is the largest.

    Raises:
        BackendError: It is more than `AGREEMENT`, or than the engine's own tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    args, _ = program.example_inputs
    inputs = tuple(
        torch.randn(a.shape, generator=generator).to(a.dtype) if a.is_floating_point() else a
        for a in args
    )
    with torch.no_grad():
        expected = program.module(check_guards=False)(*inputs)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    found = engine(*inputs)
    worst = torch.zeros(inputs[0].shape[0])
    for want, got in zip(expected, found, strict=True):
        want, got = want.double(), got.to(want.device).double()
        if want.shape != got.shape:
            raise BackendError(
                f"the {part} engine disagrees with its program",
                found=f"an output of shape {list(got.shape)}, {list(want.shape)} is right",
                fix="another backend, and report the model",
            )
        gap = (want - got).abs() / want.abs().max().clamp_min(1e-12)
        by_example = want.dim() > 0 and len(want) == len(worst)
        gap = gap.reshape(len(worst), -1).amax(1) if by_example else gap.max()
        worst = torch.maximum(worst, gap.to(worst))
    if part == "dense":
        median = float(worst.max())
    else:
        median = float(worst.min() if len(worst) < 3 else worst.median())
    limit = AGREEMENT if expected[0].dtype in (torch.float32, torch.float64) else 2e-2
    limit = max(limit, getattr(engine, "tolerance", 0.0))
    if not median <= limit:
        raise BackendError(
            f"the {part} engine disagrees with its program",
            found=f"a relative difference of {median:.1e}, at most {limit:.0e} is right",
            fix="another backend, and report the model",
        )
    return median


def _signature(program: ExportedProgram, kind: str) -> dict[str, Any]:
    specs: Any = (
        program.graph_signature.input_specs
        if kind == "USER_INPUT"
        else program.graph_signature.output_specs
    )
    nodes = {node.name: node for node in program.graph.nodes}
    found = {}
    for spec in specs:
        if spec.kind.name != kind or spec.arg.name not in nodes:
            continue
        val = nodes[spec.arg.name].meta.get("val")
        if isinstance(val, torch.Tensor):
            shape = [s if isinstance(s, int) else 0 for s in val.shape]
            found[spec.arg.name] = [shape, str(val.dtype).removeprefix("torch.")]
    return found


def check_batch(value: str) -> int | None:
    """A batch size given as text: a positive number, or `dynamic` for None.

    Raises:
        UsageError: It is neither.
    """
    if value == "dynamic":
        return None
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise UsageError(f"--batch {value!r} is no batch size", found=value, fix="--batch 8")
