"""A language model compiled into a bundle whose decoding reads a part of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.agreement import CAPTURED, DECODER_ENGINE, difference, largest_difference
from prunepass.analyse.counting import macs_by_layer
from prunepass.analyse.flops import macs
from prunepass.apply import apply_with_records
from prunepass.backends.eager import EagerEngine
from prunepass.backends.onnx_gated import READS_ALL
from prunepass.backends.protocol import Backend, Engine
from prunepass.bundle_files import check_free, write_digests, write_text, written
from prunepass.doctor.before_building import one_line
from prunepass.doctor.findings import Finding
from prunepass.engines import available, check_engine, check_kind, examined
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.language.generate import LanguageBundle, load
from prunepass.language.macs import macs_above
from prunepass.language.manifest import ENGINES, LanguageManifest
from prunepass.language.programs import capture
from prunepass.language.record import as_json
from prunepass.measure.environment import environment
from prunepass.planners.decoder_texts import step_inputs
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Plan, check_share
from prunepass.report import Report
from prunepass.stages import Clock
from prunepass.vlm.facts import context_of
from prunepass.vlm.text import FILE as TOKENIZER


def compile(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    method: str = "wina",
    keep: float | None = None,
    plan: Plan | None = None,
    calibration: Sequence[Sequence[int]] | None = None,
    backend: str | Backend = "aot_inductor",
    folder: str | Path,
    force: bool = False,
    name: str | None = None,
    weights: str = "given",
    on_stage: Callable[[str], None] | None = None,
    **options: Any,
) -> LanguageBundle:
    """A bundle of a language model: a dense engine, and one that reads fewer inputs a token.

    Args:
        model: A ...ForCausalLM of transformers, in eval mode.
        tokenizer: Its tokenizer, which goes into the bundle, or None.
        method: `wina`, `teal`, `cats` or `r-sparse`.
        keep: Share of the inputs that stay, in (0, 1].
        plan: Carries out this plan instead of making one.
        calibration: Texts as token numbers, for shares of each layer.
        backend: Name of a backend, or one with settings of its own.
        folder: The bundle to write.
        force: Whether an existing bundle is replaced.
        name: What to call the model.
        weights: Where its weights came from.
        on_stage: Told the name of each stage as it begins.
        options: Further options of `plan_inputs`.

    Raises:
        PrunepassError: One of its kinds, see `prunepass.errors`.
    """
    place, chosen = Path(folder), available(backend)
    check_free(place, force=force)
    if plan is None and keep is None:
        raise PlanError("a plan needs to know what stays", found="no keep", fix="keep=0.5")
    if keep is not None:
        check_share(keep)
    for kind in {weight.dtype for weight in model.parameters()}:
        check_kind(chosen, kind)
    clock = Clock(on_stage)
    config: Any = model.config
    _check_lengths(calibration, context_of(config))
    with clock("capture"):
        program = capture(model)
    with clock("compare"), torch.no_grad():
        check_program(program, model)
    where: dict[str, Any] = {"device": getattr(chosen, "device", None) or "cpu"}
    with clock("plan"):
        made = plan or plan_inputs(
            program, method=method, keep=float(keep or 1.0), calibration=calibration,
            **(where | options),
        )  # fmt: skip
    with clock("rewrite"):
        smaller, records = apply_with_records(program, made)
    with written(place, force=force) as scratch:
        gaps: dict[str, float] = {}
        findings: tuple[Finding, ...] = ()
        for part, source in zip(ENGINES, (program, smaller), strict=True):
            with clock(f"build {part}"):
                (scratch / part).mkdir()
                engine, findings = examined(chosen, source, scratch / part)
            with clock(f"check {part}"):
                gaps[part] = check_steps(engine, source, part, program)
            del engine
        manifest = _manifest(program, smaller, config, chosen.name, made.method, name, weights)
        if tokenizer is not None and getattr(tokenizer, "backend_tokenizer", None) is not None:
            write_text(scratch / TOKENIZER, tokenizer.backend_tokenizer.to_str())
        write_text(scratch / "plan.json", made.to_json())
        notes = {"engine": READS_ALL} if getattr(chosen, "portable", False) else {}
        write_text(scratch / "record.json", as_json(made, records, clock.seconds, notes))
        report = Report(
            model=manifest.model, weights=weights, method=made.method, backend=chosen.name,
            batch=None, example="a token", macs_dense=manifest.macs_dense, macs=manifest.macs,
            parameters=sum(p.numel() for p in model.parameters()), tokens={},
            difference_dense=gaps["dense"], difference=gaps["compressed"],
            seconds=dict(clock.seconds),
            findings=tuple(dict.fromkeys(one_line(f) for f in findings)),
            parts={"dense": macs_by_layer(program), "compressed": macs_by_layer(smaller)},
            environment=environment(),
        )  # fmt: skip
        write_text(scratch / "report.json", report.to_json())
        write_text(scratch / "bundle.json", manifest.to_json())
        write_digests(scratch)
    return load(place)


def check_program(program: ExportedProgram, model: nn.Module) -> None:
    """Nothing, if a captured decoder says what its model says, for a prompt and a further token.

    Raises:
        UnsupportedGraph: It does not.
    """
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, vocabulary, (1, 12), generator=generator)
    told: Tensor = model(input_ids=numbers, use_cache=False).logits[:, -1]
    run = EagerEngine.of(program)
    _, *cache = run(*step_inputs(program, numbers[:, :-1]))
    dropped = program.example_inputs[0][3]
    last = numbers[:, -1:]
    found = run(
        last, torch.ones_like(last), torch.full_like(last, 11), torch.zeros_like(dropped),
        torch.ones_like(numbers[:, :-1]), *cache,
    )[0]  # fmt: skip
    worst = difference(found[:, -1], told)
    if not worst <= CAPTURED.of([told]):
        raise UnsupportedGraph(
            f"the captured decoder says something else than {type(model).__name__}",
            found=f"logits differ by {worst:.1e} of the largest",
            fix="a model without masks, scales or windows of its own",
        )


def check_steps(
    engine: Engine, program: ExportedProgram, part: str, dense: ExportedProgram
) -> float:
    """How far an engine is from its program, for a prompt and for one token, if not too far.

    Where scores nearly tie, rounding decides which input is read, and what follows from that grows
    from layer to layer: a sparse step may differ from its program, but by less than half of what
    the program differs from the dense one.

    Raises:
        BackendError: It does not.
    """
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for tokens in (5, 1):
        inputs = step_inputs(program, torch.randint(0, 2, (1, tokens), generator=generator))
        told = EagerEngine.of(program)(*inputs)
        near_ties = 0.0
        if tokens == 1:
            near_ties = 0.5 * largest_difference(EagerEngine.of(dense)(*inputs), told)
        gap = check_engine(engine, part, inputs, told, limit=DECODER_ENGINE, near_ties=near_ties)
        worst = max(worst, gap)
    return worst


def _check_lengths(texts: Sequence[Sequence[int]] | None, context: int) -> None:
    for number, text in enumerate(texts or ()):
        if isinstance(text, Sized) and len(text) > context:
            raise PlanError(
                f"calibration text {number} is longer than the model's context",
                found=f"{len(text)} tokens, {context} fit",
                fix="cut it into several texts",
            )


def _manifest(
    program: ExportedProgram, smaller: ExportedProgram, config: Any, backend: str, method: str,
    name: str | None, weights: str,
) -> LanguageManifest:  # fmt: skip
    output = next(n for n in program.graph.nodes if n.op == "output")
    logits, key = (node.meta["val"] for node in output.args[0][:2])
    stop = getattr(config, "eos_token_id", None)
    stops = stop if isinstance(stop, (list, tuple)) else [] if stop is None else [stop]
    return LanguageManifest(
        backend=backend,
        model=name or str(getattr(config, "model_type", "model")),
        method=method,
        weights=weights,
        layers=(len(output.args[0]) - 1) // 2,
        cache=(int(key.shape[1]), int(key.shape[3])),
        vocabulary=int(logits.shape[2]),
        context=context_of(config),
        stop=tuple(int(s) for s in stops),
        dtype=str(key.dtype).removeprefix("torch."),
        macs_dense=macs(program),
        macs=macs(smaller),
        macs_above=macs_above(smaller),
    )
