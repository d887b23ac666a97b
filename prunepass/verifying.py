"""Whether a bundle says the same, and keeps the same tokens, in every backend that runs here.

The program of the bundle, run by PyTorch, is the reference. What a bundle keeps is told by its
program with the kept tokens as further outputs, built for each backend; the engines of the bundle
themselves are compared in what they say.
"""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.agreement import ENGINE, largest_difference, random_inputs
from prunepass.analyse.sites import fingerprint
from prunepass.backends.eager import EagerEngine, load_program
from prunepass.backends.protocol import Backend, Engine
from prunepass.backends.table import BACKENDS
from prunepass.backends.table import backend as find_backend
from prunepass.backends.tensorrt import TensorRTBackend, missing
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle import PROGRAM, read_manifest, read_plan
from prunepass.bundle_files import check_digests
from prunepass.engines import tolerance
from prunepass.errors import ModelError, PlanError, PrunepassError
from prunepass.graph import meta
from prunepass.graph.edit import seal
from prunepass.passes.reduce_tokens import draft
from prunepass.passes.table import PASSES
from prunepass.planners.methods import DOWNSAMPLE
from prunepass.plans import Plan
from prunepass.specialise import specialise

PARTS = ("dense", "compressed")
_HALF_KEPT = 0.95
"""Share of kept tokens that is the same where products are formed in half precision."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one backend says to one program of a bundle.

    Attributes:
        part: `dense` or `compressed`.
        backend: Name of the backend.
        engine: `bundle` for the engine of the bundle, `built` for one made here.
        difference: Largest relative difference of outputs to the program; None where nothing ran.
        kept: Share of kept tokens that are those of the program; None where none are chosen.
        why: Why it cannot run here, or None.
        same: Whether it says and keeps what the program does; None where it cannot run.
    """

    part: str
    backend: str
    engine: str
    difference: float | None = None
    kept: float | None = None
    why: str | None = None
    same: bool | None = None


def verify(
    bundle: Path,
    *,
    backends: Sequence[str] = tuple(BACKENDS),
    pictures: Tensor | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> list[Row]:
    """One row for each program of a bundle and each backend.

    Args:
        bundle: A bundle of a model of pictures.
        backends: Which are compared with the program.
        pictures: [B, ...] as the model takes them, None for random ones.
        on_stage: Told what is being compared.

    Raises:
        UsageError: A backend is unknown.
        ModelError: The folder is no such bundle, is damaged, or has no program in it.
        PlanError: The plan of the bundle is of another program.
    """
    chosen = {name: find_backend(name) for name in backends}
    manifest = read_manifest(bundle)
    check_digests(bundle)
    rows = []
    for part in PARTS:
        program, chooses = _program(bundle, part, eager=manifest.backend == "eager")
        inputs = _inputs(program, manifest.batch, pictures if _fits(program, pictures) else None)
        if manifest.batch is not None:
            program = specialise(program, batch=manifest.batch)
        told = _run(EagerEngine.of(program), inputs)
        number = len(told) - chooses
        for name in chosen:
            if on_stage is not None:
                on_stage(f"{part}: {name}")
            own = name == manifest.backend
            row = Row(part=part, backend=name, engine="bundle" if own else "built")
            rows.append(_compared(row, bundle, program, inputs, told, outputs=number))
    return rows


def _compared(
    row: Row, bundle: Path, program: ExportedProgram, inputs: tuple[Tensor, ...],
    told: Sequence[Tensor], *, outputs: int,
) -> Row:  # fmt: skip
    """A row with what its backend says, or with why it says nothing."""
    backend, own = find_backend(row.backend), row.engine == "bundle"
    said: Sequence[Tensor] | None = None
    limit, kept = ENGINE.of(told), told[outputs:]
    try:
        if own and row.backend == "tensorrt":
            backend = TensorRTBackend.of(bundle / row.part)
        why = missing("tensorrt") if row.backend == "tensorrt" else backend.unavailable()
        if why is not None:
            return replace(row, why=why)
        if own:
            engine = backend.load(bundle / row.part)
            if isinstance(engine, UnbuiltEngine):
                return replace(row, why=engine.why)
            said = _run(engine, inputs)
            limit = max(limit, tolerance(engine))
        if not own or (len(kept) and row.backend != "eager"):
            found = _built_and_run(backend, program, inputs)
            if isinstance(found, str):
                return replace(row, why=found)
            said, kept = said or found[:outputs], found[outputs:]
    except PrunepassError as error:
        return replace(row, why=f"{error.what} ({error.found})", same=False)
    assert said is not None
    shares = [float((a == b).float().mean()) for a, b in zip(kept, told[outputs:], strict=True)]
    share = min(shares) if shares else None
    worst = largest_difference(said, told[:outputs])
    enough = 1.0 if limit <= ENGINE.single else _HALF_KEPT
    same = worst <= limit and (share is None or share >= enough)
    return replace(row, difference=worst, kept=share, same=same)


def _built_and_run(
    backend: Backend, program: ExportedProgram, inputs: tuple[Tensor, ...]
) -> Sequence[Tensor] | str:
    """What a program says in a backend, or why it does not run there."""
    with tempfile.TemporaryDirectory() as folder:
        engine: Engine = backend.build(program, Path(folder))
        if isinstance(engine, UnbuiltEngine):
            return engine.why
        return _run(engine, inputs)


def _run(engine: Engine, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.detach().cpu() for x in engine(*inputs)]


def _program(bundle: Path, part: str, *, eager: bool) -> tuple[ExportedProgram, int]:
    """A program of a bundle that tells what it keeps, and how many outputs tell that."""
    plan = read_plan(bundle / "plan.json")
    if part == "dense" or plan.method == DOWNSAMPLE:
        return _saved(bundle, part, eager=eager), 0
    return telling(_saved(bundle, "dense", eager=eager), plan)


def _saved(bundle: Path, part: str, *, eager: bool) -> ExportedProgram:
    folder = bundle / part if eager else bundle / PROGRAM / part
    if not folder.is_dir():
        raise ModelError(
            f"{bundle} holds no program to compare with", found=f"no {PROGRAM}/{part} in it",
            fix="compile again without --no-program",
        )  # fmt: skip
    return load_program(folder)


def telling(program: ExportedProgram, plan: Plan) -> tuple[ExportedProgram, int]:
    """A program with its plan carried out and [B, K] kept tokens of each choice behind its outputs.

    Also how many choices there are. Tokens are numbered as they arrive at their site.

    Raises:
        PlanError: The plan is of another program.
        UnsupportedGraph: The graph does not allow a step.
    """
    if plan.fingerprint != fingerprint(program):
        raise PlanError(
            "the plan of a bundle is of another program", found=plan.fingerprint,
            fix="compile again",
        )  # fmt: skip
    chooses = 0
    for kind, run in PASSES.items():
        steps = [step for step in plan.steps if step.kind == kind]
        if steps and kind == "reduce_tokens":
            module, _ = draft(program, steps)
            output: Any = module.graph.find_nodes(op="output")[0]
            kept = []
            for node in list(module.graph.nodes):
                if any(label.endswith(":reduce.select") for label in meta.labels(node)):
                    with module.graph.inserting_after(node):
                        kept.append(module.graph.call_function(operator.getitem, (node, 0)))
            output.args = ((*output.args[0], *kept),)
            module.graph.set_codegen(torch.fx.graph.CodeGen())
            module.recompile()
            program, chooses = seal(module, program), len(kept)
        elif steps:
            program = run(program, steps)[0]
    return program, chooses


def _fits(program: ExportedProgram, pictures: Tensor | None) -> bool:
    """Whether pictures have the size that a program takes: that of a smaller picture differs."""
    first = program.example_inputs[0][0]
    return pictures is not None and pictures.shape[1:] == first.shape[1:]


def _inputs(
    program: ExportedProgram, batch: int | None, pictures: Tensor | None
) -> tuple[Tensor, ...]:
    size = batch or (4 if pictures is None else len(pictures))
    if pictures is not None and len(pictures) >= size:
        return (pictures[:size],)
    return random_inputs(program.example_inputs[0], seed=0, batch=size)
