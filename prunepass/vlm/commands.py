"""What the command line does with vision-language models."""

from __future__ import annotations

import itertools
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunepass.backends.protocol import Backend
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle_files import check_free
from prunepass.errors import UsageError
from prunepass.planners.image_methods import NONE
from prunepass.planners.layers import wanted
from prunepass.report import read_report
from prunepass.sources.vision_language import load_vision_language
from prunepass.terminal import Say
from prunepass.vlm.compile import compile as compile_model
from prunepass.vlm.cost import TEXT
from prunepass.vlm.loading import load
from prunepass.vlm.manifest import VlmManifest
from prunepass.vlm.sparse_decode import DecodeInputs

ONLY_PICTURES = ("flops", "action", "at", "images", "plan", "option", "target", "floor")
"""Options of `compile` that make sense for models of pictures alone."""
ONLY_TEXT = (
    "after", "positions", "image_size", "texts", "smallest", "dtype", "rotate", "decode_keep",
    "decode_method",
)  # fmt: skip
"""Options of `compile` that make sense for models of text alone, with or without pictures."""


def compile(words: Namespace, *, backend: Backend | str, say: Say) -> dict[str, Any]:
    """Compiles a vision-language model into a bundle, its engines built by a backend."""
    given = [name for name in ONLY_PICTURES if getattr(words, name) is not None]
    if given:
        raise UsageError(
            f"{words.model} is a vision-language model",
            found=", ".join(f"--{name}" for name in given),
            fix="--method, --keep, --after and --positions say what is pruned",
        )
    if words.batch != "dynamic":
        raise UsageError(
            "a vision-language bundle takes any batch",
            found=f"--batch {words.batch}",
            fix="leave it out",
        )
    check_free(Path(words.output), force=words.force)
    say("loading", stage=True)
    loaded = load_vision_language(words.model, weights=words.weights)
    without: int | tuple[str, ...] = wanted(words.drop_layers) if words.drop_layers else ()
    method = words.method or (NONE if without else "transprune")
    decode = _decode_inputs(words)
    bundle = compile_model(
        loaded.module, loaded.processor, method=method,
        keep=shares(words.keep), after=words.after, positions=words.positions,
        image_size=words.image_size, without=without, score=words.score or "bi",
        texts=words.texts, decode_inputs=decode, backend=backend, folder=words.output,
        force=words.force, name=words.model, weights=loaded.weights,
        preprocessing=loaded.preprocessing,
        template=loaded.template, on_stage=lambda stage: say(stage, stage=True),
    )  # fmt: skip
    manifest, report = bundle.manifest, read_report(Path(words.output))
    if words.json:
        return {**told(manifest), "macs_ratio": report["macs_ratio"]}
    say(f"model             {manifest.model}")
    say(f"method            {manifest.method}, positions {manifest.positions}")
    if manifest.without:
        say(f"dropped           {', '.join(manifest.without)}; {len(manifest.shares)} layers left")
    if manifest.decode_inputs is not None:
        reads = manifest.decode_inputs
        say(
            f"decoding          {reads['method']}: {reads['layers']} layers read {reads['keep']:g} "
            f"of their inputs, {reads['dense_layers']} all; {reads['macs_ratio']:.3f} of the MACs"
        )
        if "note" in reads:
            say(f"                  {reads['note']}")
    left = [part / whole for part, whole in manifest.shares]
    counted = left if manifest.image_tokens is None else manifest.left()
    say(f"image tokens      {_runs(counted)}")
    say(
        f"MACs a prompt     {report['macs_dense'] / 1e9:.4f} G -> {report['macs'] / 1e9:.4f} G "
        f"({report['macs_ratio']:.3f}), encoder included, one picture and {TEXT} words"
    )
    say(f"cache of images   {sum(left) / len(left):.3f} of the dense one")
    if isinstance(engine := bundle.engines["decode"], UnbuiltEngine):
        say(f"engines           {engine.told}")
    say(f"bundle            {words.output}")
    return {}


def _decode_inputs(words: Namespace) -> DecodeInputs | None:
    """What decoding steps read, as the words ask."""
    if words.decode_keep is None:
        for name in ("decode_method", "smallest"):
            if getattr(words, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} is about decoding that reads fewer inputs",
                    found="no --decode-keep",
                    fix="--decode-keep 0.5",
                )
        return None
    more = {} if words.smallest is None else {"smallest": words.smallest}
    return DecodeInputs(keep=words.decode_keep, method=words.decode_method or "wina", **more)


def generate(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Answers one prompt with a bundle."""
    if words.prompt is None:
        raise UsageError(
            "token numbers are for bundles of language models",
            found="--tokens",
            fix="--prompt TEXT",
        )
    bundle = load(words.bundle, threads=words.threads, device=words.device, mapped=words.mapped)
    if bundle.text is None:
        raise UsageError(
            f"{words.bundle} has no tokenizer",
            found="no tokenizer.json",
            fix="compile a model whose folder has its tokenizer",
        )
    options: dict[str, Any] = {"max_new_tokens": words.max_new_tokens, "seed": words.seed}
    options |= {"temperature": words.temperature}
    if words.json:
        answer = bundle.generate(
            words.image, words.prompt, top_k=words.top_k, top_p=words.top_p, **options
        )
        return {"text": answer.text, "tokens": answer.tokens, "kept": [len(k) for k in answer.kept]}
    for piece in bundle.stream(
        words.image, words.prompt, top_k=words.top_k, top_p=words.top_p, **options
    ):
        print(piece, end="", file=sys.stdout, flush=True)
    print(file=sys.stdout)
    return {}


def shares(text: str | None) -> tuple[float, ...] | str | None:
    """`--keep` as shares, or the name of a plan.

    Raises:
        UsageError: It is neither.
    """
    if text is None or text.isalpha():
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--keep {text!r} is no list of shares", found=text, fix="--keep 0.875,0.625,0.125"
        ) from error


def told(manifest: VlmManifest) -> dict[str, Any]:
    """What a program wants to know of a bundle."""
    return {
        "model": manifest.model,
        "method": manifest.method,
        "positions": manifest.positions,
        "image_tokens": None if manifest.image_tokens is None else manifest.left(),
        "shares": [part / whole for part, whole in manifest.shares],
        "backend": manifest.backend,
        "without": list(manifest.without),
        "decode_inputs": manifest.decode_inputs,
    }


def _runs(numbers: Sequence[float]) -> str:
    """Numbers with how often each follows itself: `576 x 7 layers, 504 x 2 layers`."""
    runs = [(number, len(list(run))) for number, run in itertools.groupby(numbers)]
    return ", ".join(f"{number:g} x {times} layers" for number, times in runs)
