"""A vision-language model compiled into a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from prunepass.backends.eager import EagerEngine
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_gated import READS_ALL
from prunepass.backends.onnx_weights import SharedWeights
from prunepass.backends.protocol import Backend, Engine
from prunepass.bundle_files import check_free, write_digests, write_text, written
from prunepass.doctor.before_building import check
from prunepass.engines import available, check_engine, examined
from prunepass.plans import Plain
from prunepass.stages import Clock
from prunepass.vlm.generate import VlmBundle
from prunepass.vlm.layers import chosen_layers
from prunepass.vlm.loading import load
from prunepass.vlm.patches import ImageSize
from prunepass.vlm.processor import fast_tokenizer
from prunepass.vlm.report import told_of
from prunepass.vlm.rewrite import rewrite
from prunepass.vlm.sparse_decode import DecodeInputs
from prunepass.vlm.text import FILE as TOKENIZER

NEAR_TIES = 1e-2
"""Largest relative difference of a sparse decoding step: some input in a thousand is another."""


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
    decode_inputs: DecodeInputs | None = None,
    backend: str | Backend = "onnx",
    folder: str | Path,
    force: bool = False,
    name: str | None = None,
    weights: str = "given",
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
        decode_inputs: What decoding steps read, None for all of the weights.
        backend: Name of a backend, or one with settings of its own.
        folder: The bundle to write.
        force: Whether an existing bundle is replaced.
        name: What to call the model.
        weights: Where its weights came from, for the report.
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
    made = rewrite(
        model, processor_or_layout, method=method, keep=keep, after=after, positions=positions,
        options=options, image_size=image_size, without=without, decode_inputs=decode_inputs,
        backend=chosen.name, name=name, preprocessing=preprocessing, template=template, clock=clock,
    )  # fmt: skip
    programs, manifest = made.programs, made.manifest
    if manifest.decode_inputs is not None and getattr(chosen, "portable", False):
        reads = {**manifest.decode_inputs, "note": READS_ALL}
        manifest = dataclasses.replace(manifest, decode_inputs=reads)
    with written(place, force=force) as scratch:
        shared, gaps = SharedWeights(scratch), []
        for part, program in programs.items():
            with clock(f"build {part}"):
                (scratch / part).mkdir()
                engine = _built(chosen, program, scratch / part, shared)
            with clock(f"check {part}"):
                inputs, _ = program.example_inputs
                told = EagerEngine.of(program)(*inputs)
                sparse = part == "decode" and decode_inputs is not None
                near_ties = NEAR_TIES if sparse else 0.0
                gaps.append(check_engine(engine, part, inputs, told, near_ties=near_ties))
            del engine
        _write_tokenizer(processor_or_layout, scratch)
        report = told_of(
            made, parameters=sum(p.numel() for p in model.parameters()), difference=max(gaps),
            seconds=clock.seconds, weights=weights,
        )  # fmt: skip
        write_text(scratch / "plan.json", made.plan.to_json())
        write_text(scratch / "report.json", report.to_json())
        write_text(scratch / "bundle.json", manifest.to_json())
        write_digests(scratch)
    return load(place)


def _built(
    backend: Backend, program: ExportedProgram, folder: Path, weights: SharedWeights
) -> Engine:
    """An engine; of ONNX with its weights among those of the others, as many are the same."""
    if not isinstance(backend, OnnxBackend):
        return examined(backend, program, folder)[0]
    check(program, ("onnxscript",))
    backend.write(program, folder)
    check(weights.take_in(folder), ("onnxruntime",))
    return backend.load(folder)


def _write_tokenizer(processor: Any, folder: Path) -> None:
    fast = fast_tokenizer(processor)
    if fast is not None:
        write_text(folder / TOKENIZER, fast.to_str())
