"""What is held against each other: the engines of bundles, whatever kind of model is in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunepass.backends.protocol import Engine
from prunepass.bundle import Manifest
from prunepass.engines import load_engines
from prunepass.errors import UsageError
from prunepass.language.bench import CACHED, decoding_inputs
from prunepass.language.generate import load as load_language
from prunepass.language.manifest import is_language_bundle
from prunepass.measure.timing import finish
from prunepass.vlm.loading import load as load_vlm
from prunepass.vlm.manifest import VlmManifest, is_vlm_bundle

DENSE, COMPRESSED = "dense", "compressed"
WORDS = 64
"""Text tokens of a prompt with a picture, half of them behind it."""
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One engine that can be timed.

    Attributes:
        name: What it is called beside others.
        folder: Its bundle.
        part: `dense` or `compressed`.
        model: What was compiled.
        method: Of the plan; `dense` where nothing is left out.
        backend: Name of the backend.
        device: Where it computes.
        unit: What it takes a batch of: `images`, `tokens` (one more behind a cache), `prompts`
            (with a picture, to the first token).
        takes: What tells inputs apart: those of two subjects must be equal to be compared.
        macs_at: Batch -> multiply-accumulates for one of them, None where that depends on the
            prompt. A token of a batch costs more than one alone where sparse products end.
        batch: The batch size it is fixed to, None for any.
        prepare: Batch -> a run of the engine on random inputs, always the same ones.
    """

    name: str
    folder: Path
    part: str
    model: str
    method: str
    backend: str
    device: str
    unit: str
    takes: str
    macs_at: Callable[[int], int | None]
    batch: int | None
    prepare: Callable[[int], Call]


def subjects(
    folder: Path, *, threads: int | None = None, parts: Sequence[str] = (DENSE, COMPRESSED)
) -> list[Subject]:
    """The engines of a bundle. That of a vision-language model has no dense part.

    Raises:
        ModelError: The folder is no bundle.
        BackendError: An engine cannot be loaded.
    """
    if is_language_bundle(folder):
        return _of_language(folder, threads, parts)
    if is_vlm_bundle(folder):
        return [_of_vision_language(folder, threads)] if COMPRESSED in parts else []
    return _of_pictures(folder, threads, parts)


def _of_pictures(folder: Path, threads: int | None, parts: Sequence[str]) -> list[Subject]:
    manifest, engines = load_engines(folder, threads=threads, parts=parts)
    return [
        Subject(
            name=part, folder=folder, part=part, model=manifest.model,
            method=DENSE if part == DENSE else _method(folder), backend=manifest.backend,
            device=_device(engine), unit="images", takes=json.dumps(dict(manifest.inputs)),
            macs_at=_always(manifest.macs_dense if part == DENSE else manifest.macs),
            batch=manifest.batch,
            prepare=_on(engine, lambda batch: picture_inputs(manifest, batch)),
        )
        for part, engine in engines.items()
    ]  # fmt: skip


def _of_language(folder: Path, threads: int | None, parts: Sequence[str]) -> list[Subject]:
    bundle = load_language(folder, threads=threads, parts=parts)
    told = bundle.manifest
    cached = min(CACHED, told.context - 1)
    return [
        Subject(
            name=part, folder=folder, part=part, model=told.model,
            method=DENSE if part == DENSE else told.method, backend=told.backend,
            device=_device(engine), unit="tokens",
            takes=f"{told.layers} {told.cache} {told.vocabulary} {told.dtype}",
            macs_at=_always(told.macs_dense) if part == DENSE else told.macs_at, batch=None,
            prepare=_on(engine, lambda n: decoding_inputs(told, batch=n, cached=cached)),
        )
        for part, engine in bundle.engines.items()
    ]  # fmt: skip


def _of_vision_language(folder: Path, threads: int | None) -> Subject:
    bundle = load_vlm(folder, threads=threads)
    told = bundle.manifest
    if told.tiling is not None:
        raise UsageError(
            f"{folder} takes pictures of any size, so there is no one to be timed on",
            found="a model that cuts pictures into tiles",
            fix="compile with --image-size H,W",
        )

    def prepare(batch: int) -> Call:
        pixels = _random((batch, 1, *told.pixels), torch.float32)
        prompts = _prompts(told, batch)
        return lambda: bundle.begin(list(pixels), prompts, room=1)

    return Subject(
        name=COMPRESSED, folder=folder, part=COMPRESSED, model=told.model, method=told.method,
        backend=told.backend, device=_device(bundle.engines["prefill"]), unit="prompts",
        takes=f"{told.pixels} {told.image_tokens} {told.vocabulary}", macs_at=_always(None),
        batch=None, prepare=prepare,
    )  # fmt: skip


def _always(macs: int | None) -> Callable[[int], int | None]:
    return lambda _: macs


def _on(engine: Engine, inputs: Callable[[int], tuple[Tensor, ...]]) -> Callable[[int], Call]:
    def prepare(batch: int) -> Call:
        device = getattr(engine, "device", None)
        made = tuple(x.to(device) for x in inputs(batch))

        def run() -> object:
            found = engine(*made)
            finish(found)
            return found

        return run

    return prepare


def picture_inputs(manifest: Manifest, batch: int) -> tuple[Tensor, ...]:
    """Random inputs of an engine of pictures."""
    return tuple(
        _random((batch, *shape[1:]), getattr(torch, kind))
        for shape, kind in manifest.inputs.values()
    )


def _random(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if not kind.is_floating_point:
        return torch.zeros(shape, dtype=kind)
    return torch.randn(shape, generator=generator).to(kind)


def _prompts(told: VlmManifest, batch: int) -> list[list[int]]:
    """Prompts of random words with one picture in the middle."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, told.vocabulary, (batch, WORDS), generator=generator)
    words[words == told.image_token] = (told.image_token + 1) % told.vocabulary
    half = WORDS // 2
    return [[*w[:half], told.image_token, *w[half:]] for w in words.tolist()]


def _method(folder: Path) -> str:
    try:
        return str(json.loads((folder / "plan.json").read_text(encoding="utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _device(engine: Engine) -> str:
    return str(getattr(engine, "device", "cpu"))
