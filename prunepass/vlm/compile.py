"""A vision-language model compiled into a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.backends.protocol import Engine
from prunepass.bundle import check_free, write_text, written
from prunepass.compiler import AGREEMENT, Clock, available
from prunepass.errors import BackendError, PlanError, UsageError
from prunepass.passes.bind_image_steps import layer_of, share_of
from prunepass.passes.extend_cache import extend_cache
from prunepass.passes.prune_image_tokens import prune_image_tokens
from prunepass.passes.select_image_features import select_image_features
from prunepass.plan import Plain, Step
from prunepass.planners.image_methods import NONE, image_method, image_steps
from prunepass.rules.image_tokens import kept_number
from prunepass.vlm.cost import check_pays
from prunepass.vlm.facts import Facts, facts
from prunepass.vlm.generate import VlmBundle
from prunepass.vlm.layers import chosen_layers, layers_left, without_layers
from prunepass.vlm.layout import Layout
from prunepass.vlm.loading import load
from prunepass.vlm.manifest import ENGINES, VlmManifest
from prunepass.vlm.patches import ImageSize, pictures_of
from prunepass.vlm.processor import described, fast_tokenizer
from prunepass.vlm.programs import capture_embedding, capture_language, capture_vision
from prunepass.vlm.split import Sees, split
from prunepass.vlm.text import FILE as TOKENIZER
from prunepass.vlm.verify import (
    Example,
    check_programs,
    difference,
    example_of,
    runner,
    what_tokens_see,
)


def compile(
    model: nn.Module,
    processor_or_layout: Any = None,
    *,
    method: str = "transprune",
    keep: Sequence[float] | str | None = None,
    after: Sequence[int] | None = None,
    positions: str | None = None,
    options: Mapping[str, Plain] | None = None,
    image_size: ImageSize | None = None,
    without: int | Sequence[str] = (),
    score: str = "bi",
    texts: str | Path | None = None,
    backend: str = "onnx",
    folder: str | Path,
    force: bool = False,
    name: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    template: str | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> VlmBundle:
    """A bundle of a vision-language model: encoder, embedding, prefill and decoder.

    Args:
        model: An image-text-to-text model of transformers, in eval mode.
        processor_or_layout: Its processor, whose tokenizer and picture preparation go into the
            bundle; a `Layout` for token numbers alone; None for what the model's config tells.
        method: Name of a method, or `none` for a bundle that prunes nothing.
        keep: Share of the image tokens that stays at each stage, or the name of a plan.
        after: Layers behind which tokens go, from 1; None for the method's own.
        positions: `keep_original` or `compact`; None for the method's own.
        options: Further options of the method's rule.
        image_size: (height, width) of the pictures, or both as one number, where the model takes
            any; None for what its config says.
        without: Layers of the language model to drop, such as `block[3]` or `block[3].mlp`, or how
            many. `after` counts the layers that are left.
        score: What chooses them where a number is given.
        texts: A file of prompts, one a line, that the score is measured on; `zd` needs none.
        backend: Name of a backend.
        folder: The bundle to write.
        force: Whether an existing bundle is replaced.
        name: What to call the model.
        preprocessing: How a picture becomes an input, None for what the processor says.
        template: A prompt with `{image}` and `{prompt}`, None for what the processor says.
        on_stage: Told the name of each stage as it begins.

    Raises:
        PrunepassError: One of its kinds, see `prunepass.errors`.
    """
    place, chosen = Path(folder), available(backend)
    check_free(place, force=force)
    clock = Clock(on_stage)
    if isinstance(without, int):
        with clock("score layers"):
            given = None if texts is None else Path(texts)
            without = chosen_layers(model, processor_or_layout, without, score=score, texts=given)
    programs, manifest = rewrite(
        model, processor_or_layout, method=method, keep=keep, after=after, positions=positions,
        options=options, image_size=image_size, without=without, backend=chosen.name, name=name,
        preprocessing=preprocessing, template=template, clock=clock,
    )  # fmt: skip
    with written(place, force=force) as scratch:
        for part, program in programs.items():
            with clock(f"build {part}"):
                (scratch / part).mkdir()
                engine = chosen.build(program, scratch / part)
            with clock(f"check {part}"):
                _check(engine, program, part)
            del engine
        _write_tokenizer(processor_or_layout, scratch)
        write_text(scratch / "bundle.json", manifest.to_json())
    return load(place)


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
    backend: str = "eager",
    name: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    template: str | None = None,
    clock: Clock | None = None,
) -> tuple[dict[str, ExportedProgram], VlmManifest]:
    """The programs of a bundle by name, and the manifest that binds them: `compile` unbuilt.

    Raises:
        PrunepassError: See `compile`.
    """
    clock = clock or Clock(None)
    if any(module.training for module in model.modules()):
        raise UsageError(
            "cannot compile a model in training mode", found="model.training is True", fix="eval()"
        )
    pictures = pictures_of(model, image_size)
    parts, known = split(model, pictures), facts(model, pictures)
    with clock("capture"):
        examples = pictures.examples(known.dtype)
        vision, any_images = capture_vision(parts.vision, examples, alone=pictures.alone)
        image_tokens = int(_features(vision).shape[1])
    with clock("compare"):
        example = example_of(model, pictures, known, image_tokens=image_tokens)
        sees = what_tokens_see(model, pictures, example)
        checked: Example | None = example
        language = split(model, pictures, sees=sees).language
        rows = 1 if known.grid_of is None else 3
    with clock("plan"):
        layers = layers_left(known.layers, without)
        steps = image_steps(
            method, layers=layers, image_tokens=image_tokens, keep=keep, after=after,
            positions=_positions(method, positions, rows), options=options,
        )  # fmt: skip
        policy = _policy(steps)
    with clock("rewrite"):
        if steps and steps[0].kind == "select_image_features":
            _refuse_grid(rows, method)
            vision, _ = select_image_features(vision, steps)
            checked = None  # the model itself has no such prompt
            image_tokens, steps = int(_features(vision).shape[1]), ()
        embedding = capture_embedding(parts.embedding)
        dense = capture_language(
            language, channels=known.channels, image_tokens=image_tokens,
            position_rows=rows, dtype=known.dtype,
        )  # fmt: skip
        if without:
            if checked is not None:
                # Told against the model before layers go: behind that, nothing is left to compare.
                whole = extend_cache(dense, (0,), positions="keep_original")
                check_programs((vision, embedding, dense, whole), checked, (0,))
                checked = None
            dense = without_layers(dense, without)
        dropped = _dropped(steps, layers, image_tokens)
        manifest = _manifest(
            model, processor_or_layout, known, dense, backend=backend, method=method,
            positions=policy, dropped=dropped, image_tokens=image_tokens, any_images=any_images,
            name=name or type(model).__name__, preprocessing=preprocessing, template=template,
            sees=sees, without=tuple(without),
        )  # fmt: skip
        prefill, _ = prune_image_tokens(dense, steps) if steps else (dense, None)
        if prefill is not dense:
            check_pays(dense, prefill, image_tokens=image_tokens)
        decode = extend_cache(dense, manifest.first_layers, positions=policy)  # type: ignore[arg-type]
    if checked is not None:
        with clock("compare"):
            check_programs((vision, embedding, dense, decode), checked, manifest.first_layers)
    return dict(zip(ENGINES, (vision, embedding, prefill, decode), strict=True)), manifest


def _features(program: ExportedProgram) -> Tensor:
    output = next(n for n in program.graph.nodes if n.op == "output")
    features: Tensor = output.args[0][0].meta["val"]
    return features


def _positions(method: str, asked: str | None, rows: int) -> str | None:
    """The policy: positions of time, row and column cannot be numbered anew."""
    if rows == 1:
        return asked
    if asked == "compact":
        raise PlanError(
            "positions of time, row and column cannot be numbered anew",
            found="positions='compact' for a model with three rows of positions",
            fix="positions='keep_original'",
        )
    return "keep_original" if method != NONE else asked


def _refuse_grid(rows: int, method: str) -> None:
    if rows > 1:
        raise PlanError(
            f"{method} takes tokens out in front of a model whose positions are rows and columns",
            found="the tokens that stay would lose their places",
            fix="transprune, fastv or another that prunes inside the language model",
        )


def _policy(steps: Sequence[Step]) -> str:
    found = steps[0].options.get("positions") if steps else None
    return str(found) if found else "keep_original"


def _dropped(steps: Sequence[Step], layers: int, image_tokens: int) -> tuple[int, ...]:
    """For each layer, how many tokens of an image are gone."""
    found = [0] * layers
    for step in sorted(steps, key=layer_of):
        share = share_of(step.keep)
        kept = share if isinstance(share, int) else kept_number(image_tokens, share)
        for layer in range(layer_of(step), layers):
            found[layer] = image_tokens - kept
    return tuple(found)


def _manifest(
    model: nn.Module,
    processor_or_layout: Any,
    known: Facts,
    dense: ExportedProgram,
    *,
    backend: str,
    method: str,
    positions: str,
    dropped: tuple[int, ...],
    image_tokens: int,
    any_images: bool,
    name: str,
    preprocessing: Mapping[str, Any] | None,
    template: str | None,
    sees: Sees,
    without: tuple[str, ...],
) -> VlmManifest:
    output = next(n for n in dense.graph.nodes if n.op == "output")
    logits, key = (node.meta["val"] for node in output.args[0][:2])
    given = processor_or_layout if isinstance(processor_or_layout, Layout) else None
    processor = None if given is not None else processor_or_layout
    if given is not None and given.image_tokens not in (image_tokens, image_tokens + dropped[-1]):
        raise UsageError(
            "the layout does not fit the model",
            found=f"{given.image_tokens} image tokens, the model makes {image_tokens}",
            fix=f"Layout(image_tokens={image_tokens}, ...)",
        )
    told = described(processor, known.pixels, known.image_token) if processor is not None else {}
    return VlmManifest(
        backend=backend,
        model=name,
        method=method,
        positions=positions,
        rows="text" if method == NONE else image_method(method).rows,
        dropped=dropped,
        cache=(int(key.shape[1]), int(key.shape[3])),
        vocabulary=int(logits.shape[2]),
        image_token=known.image_token if given is None else given.image_token,
        image_tokens=image_tokens,
        any_images=any_images,
        grid=known.grid_of,
        padding=known.padding if given is None else given.padding,
        stop=known.stop,
        context=known.context,
        pixels=known.pixels,
        preprocessing=preprocessing or told.get("preprocessing"),
        template=template or told.get("template"),
        image_mark=told.get("image_mark"),
        sees=sees,
        without=without,
    )


def _write_tokenizer(processor: Any, folder: Path) -> None:
    fast = fast_tokenizer(processor)
    if fast is not None:
        write_text(folder / TOKENIZER, fast.to_str())


def _check(engine: Engine, program: ExportedProgram, part: str) -> None:
    """An engine that disagrees with its program is not shipped.

    Raises:
        BackendError: It does.
    """
    args, _ = program.example_inputs
    expected, found = runner(program)(*args), engine(*args)
    worst = max(
        difference(got, want) if got.shape == want.shape else float("inf")
        for want, got in zip(expected, found, strict=True)
    )
    limit = AGREEMENT if expected[0].dtype in (torch.float32, torch.float64) else 2e-2
    if not worst <= limit:
        raise BackendError(
            f"the {part} engine disagrees with its program",
            found=f"a relative difference of {worst:.1e}, at most {limit:.0e} is right",
            fix="another backend, and report the model",
        )
