"""All of it in one call: capture, plan, apply, build both engines, check them, write the bundle."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.agreement import random_inputs
from prunepass.analyse.counting import macs_by_layer
from prunepass.analyse.flops import macs as count_macs
from prunepass.apply import apply_with_records
from prunepass.backends.eager import EagerEngine, save_program
from prunepass.backends.protocol import Backend, Engine
from prunepass.bundle import PROGRAM, Manifest
from prunepass.bundle_files import check_free, write_digests, write_text, written
from prunepass.capturing import capture
from prunepass.doctor.before_building import one_line
from prunepass.engines import available, check_engine, examined
from prunepass.measure.environment import environment
from prunepass.planners.budget import plan as make_plan
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE
from prunepass.plans import Action, Plain, Plan
from prunepass.records import PassRecord
from prunepass.report import Report
from prunepass.specialise import specialise
from prunepass.stages import Clock, Stage


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
                inputs = random_inputs(final.example_inputs[0], seed=0)
                # The dense engine chooses nothing, so no near tie excuses an example of it.
                differences[part] = check_engine(
                    engine, part, inputs, EagerEngine.of(final)(*inputs), typical=part != "dense"
                )
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
