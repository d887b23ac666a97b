"""A vision-language model rewritten: the programs of a bundle, and what was done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn
from torch.export import ExportedProgram

from prunepass.analyse.projections import label_projections
from prunepass.analyse.sites import fingerprint
from prunepass.errors import PlanError
from prunepass.passes.extend_cache import extend_cache
from prunepass.passes.prune_image_tokens import prune_image_tokens
from prunepass.planners.image_methods import DOWNSAMPLE, NONE, image_steps
from prunepass.plans import Plain, Plan, Step
from prunepass.stages import Clock
from prunepass.vlm.binding import manifest_of
from prunepass.vlm.cost import PromptCost, check_pays, prompt_cost
from prunepass.vlm.encoder import Encoder, encoder_of, in_front
from prunepass.vlm.layers import check_scored, layers_left, numbers_left, without_layers
from prunepass.vlm.manifest import ENGINES, VlmManifest
from prunepass.vlm.patches import ImageSize
from prunepass.vlm.programs import capture_embedding, capture_language
from prunepass.vlm.sparse_decode import DecodeInputs, read_fewer_inputs
from prunepass.vlm.subject import Subject, subject_of
from prunepass.vlm.verify import check_programs


class Rewritten(NamedTuple):
    """A model taken apart and rewritten, nothing built.

    Attributes:
        programs: By the name of the engine.
        manifest: What binds them.
        plan: What was done.
        image_tokens: That the encoder made of a picture, as the model was.
        dense: What a prompt costs the model as it was.
        cost: What it costs now.
    """

    programs: dict[str, ExportedProgram]
    manifest: VlmManifest
    plan: Plan
    image_tokens: int
    dense: PromptCost
    cost: PromptCost


def rewrite(
    model: nn.Module,
    processor_or_layout: Any = None,
    *,
    method: str,
    keep: Sequence[float] | str | None = None,
    after: Sequence[int] | None = None,
    positions: str | None = None,
    options: Mapping[str, Plain] | None = None,
    image_size: ImageSize | None = None,
    without: Sequence[str] = (),
    decode_inputs: DecodeInputs | None = None,
    backend: str = "eager",
    name: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    template: str | None = None,
    clock: Clock | None = None,
) -> Rewritten:
    """A model taken apart and rewritten: `compile` unbuilt.

    Raises:
        PrunepassError: See `compile`.
    """
    clock = clock or Clock(None)
    subject = subject_of(model, image_size, clock=clock)
    with clock("plan"):
        steps = image_steps(
            method, layers=layers_left(subject.known.layers, without),
            image_tokens=subject.encoder.image_tokens, keep=keep, after=after,
            positions=_positions(method, positions, subject), options=options,
        )  # fmt: skip
    with clock("rewrite"):
        encoder = encoder_of(
            model, subject.pictures, subject.encoder, method=method, steps=steps, keep=keep,
            options=options,
        )  # fmt: skip
        embedding = capture_embedding(subject.parts.embedding)
        whole = _language(subject, encoder)
        dense = _without(subject, embedding, whole, without)
        if decode_inputs is not None:
            dense = label_projections(dense)
        inside = () if in_front(steps) else steps
        left = numbers_left(subject.known.layers, without)
        check_scored(dense, inside, method=method, left=left)
        manifest = manifest_of(
            subject, encoder, dense, processor_or_layout, method=method, steps=inside,
            positions=_policy(steps), without=without, backend=backend, name=name,
            preprocessing=preprocessing, template=template,
        )  # fmt: skip
        prefill = _pruned(dense, inside, subject.encoder.image_tokens)
        decode = extend_cache(dense, manifest.first_layers, positions=manifest.positions)  # type: ignore[arg-type]
    if not without:
        with clock("compare"):
            _check(subject, embedding, dense, decode, first_layers=manifest.first_layers)
    if decode_inputs is not None:
        with clock("read fewer inputs"):
            prefill, decode, told = read_fewer_inputs(prefill, decode, decode_inputs)
        manifest = replace(manifest, decode_inputs=told)
    with clock("count"):
        layers = subject.known.layers
        before = _cost(subject, subject.encoder, whole, range(layers))
        cost = _cost(subject, encoder, prefill, numbers_left(layers, without))
    return Rewritten(
        dict(zip(ENGINES, (encoder.program, embedding, prefill, decode), strict=True)),
        manifest,
        _plan(method, steps, whole, manifest),
        subject.encoder.image_tokens,
        before,
        cost,
    )


def _positions(method: str, asked: str | None, subject: Subject) -> str | None:
    """The policy asked for: positions of time, row and column cannot be numbered anew."""
    if subject.position_rows == 1:
        return asked
    if asked == "compact":
        raise PlanError(
            "positions of time, row and column cannot be numbered anew",
            found="positions='compact' for a model with three rows of positions",
            fix="positions='keep_original'",
        )
    return "keep_original" if method != NONE else asked


def _policy(steps: Sequence[Step]) -> str:
    """The policy that was planned."""
    found = steps[0].options.get("positions") if steps else None
    return str(found) if found else "keep_original"


def _language(subject: Subject, encoder: Encoder) -> ExportedProgram:
    """The language model of a subject, for as many image tokens as an encoder gives."""
    # Compared with the model at all of its image tokens, run with what the encoder gives.
    any_number = (
        subject.pictures.tiling is not None or encoder.program is not subject.encoder.program
    )
    return capture_language(
        subject.parts.language, channels=subject.known.channels,
        image_tokens=subject.encoder.image_tokens, position_rows=subject.position_rows,
        dtype=subject.known.dtype, any_image_tokens=any_number,
    )  # fmt: skip


def _without(
    subject: Subject, embedding: ExportedProgram, whole: ExportedProgram, sites: Sequence[str]
) -> ExportedProgram:
    """A language program without some layers.

    Raises:
        PlanError: A site is unknown, or no attention would be left.
        UnsupportedGraph: The program with all layers says something else than the model.
    """
    if not sites:
        return whole
    # Told against the model before layers go: behind that, nothing is left to compare.
    decode = extend_cache(whole, (0,), positions="keep_original")
    _check(subject, embedding, whole, decode, first_layers=(0,))
    return without_layers(whole, sites)


def _check(
    subject: Subject, embedding: ExportedProgram, prefill: ExportedProgram,
    decode: ExportedProgram, *, first_layers: Sequence[int],
) -> None:  # fmt: skip
    """Refuses programs that say something else than the model, without pruning."""
    captured = (subject.encoder.program, embedding, prefill, decode)
    check_programs(captured, subject.pictures, subject.example, first_layers=first_layers)


def _pruned(dense: ExportedProgram, steps: Sequence[Step], image_tokens: int) -> ExportedProgram:
    """A prefill that prunes image tokens, where there are steps; it costs less than without.

    Raises:
        PlanError: It does not.
    """
    if not steps:
        return dense
    prefill, _ = prune_image_tokens(dense, steps)
    if prefill is not dense:
        check_pays(dense, prefill, image_tokens=image_tokens)
    return prefill


def _cost(
    subject: Subject, encoder: Encoder, language: ExportedProgram, layers: Sequence[int]
) -> PromptCost:
    """What a prompt costs with an encoder and a prefill of these layers of the model."""
    return prompt_cost(
        encoder.program, language, image_tokens=encoder.image_tokens, tiles=subject.tiles,
        layers=layers,
    )  # fmt: skip


def _plan(
    method: str, steps: Sequence[Step], whole: ExportedProgram, manifest: VlmManifest
) -> Plan:
    """What was done, to be read: layers first, then image tokens; sites as they are then."""
    left = [part / of for part, of in manifest.shares]
    notes: dict[str, Plain] = {
        "positions": manifest.positions, "cache": round(sum(left) / len(left), 4),
    }  # fmt: skip
    if manifest.without:
        notes["dropped"] = list(manifest.without)
    if manifest.decode_inputs is not None:
        notes |= {f"decode_{key}": value for key, value in manifest.decode_inputs.items()}
    if method == DOWNSAMPLE:
        notes["pixels"] = list(manifest.pixels)
    drops = [Step(kind="drop_layers", site=site) for site in manifest.without]
    return Plan(method=method, steps=(*drops, *steps), fingerprint=fingerprint(whole), notes=notes)
