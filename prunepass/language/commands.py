"""What the command line does with language models."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import nn

from prunepass.backends.protocol import Backend
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle import read_plan
from prunepass.bundle_files import check_free
from prunepass.engines import check_kind
from prunepass.errors import ModelError, UsageError
from prunepass.language.compile import compile as compile_model
from prunepass.language.generate import load
from prunepass.language.programs import capture
from prunepass.plans import Plan
from prunepass.search.inputs import keep_for
from prunepass.sources.language import DTYPES, load_language
from prunepass.terminal import Say

_OTHERS = (
    "flops", "action", "at", "images", "after", "positions", "image_size", "drop_layers", "score",
    "option", "decode_keep", "decode_method",
)  # fmt: skip
"""Options of `compile` that make no sense for language models."""


def compile(words: Namespace, *, backend: Backend | str, say: Say) -> dict[str, Any]:
    """Compiles a language model into a bundle, its engines built by a backend."""
    given = [name for name in _OTHERS if getattr(words, name) is not None]
    if given or words.batch != "dynamic":
        found = ", ".join("--" + name.replace("_", "-") for name in given) or "--batch"
        raise UsageError(
            f"{words.model} is a language model",
            found=found,
            fix="--method, --keep and --texts say what is read; any batch is taken",
        )
    planned = words.target is not None or words.floor is not None
    if planned:
        _check_planned(words)
    elif (words.keep is None) == (words.plan is None):
        raise UsageError(
            "a language model needs the share of inputs that stay, or a plan",
            found="both" if words.keep else "neither --keep nor --plan",
            fix="--keep 0.5",
        )
    check_free(Path(words.output), force=words.force)
    plan = read_plan(Path(words.plan)) if words.plan else None
    keep = None if words.keep is None else _share(words.keep)
    if words.dtype in DTYPES:
        check_kind(backend, DTYPES[words.dtype])
    say("loading", stage=True)
    loaded = load_language(words.model, weights=words.weights, dtype=words.dtype)
    texts = None if words.texts is None else read_texts(Path(words.texts), loaded.tokenizer)
    options = {} if words.smallest is None else {"smallest": words.smallest}
    if planned:
        plan, texts = _planned(words, loaded.module, texts or [], say, **options), None
    bundle = compile_model(
        loaded.module, loaded.tokenizer, method=words.method or "wina", keep=keep, plan=plan,
        calibration=texts, backend=backend, folder=words.output, force=words.force,
        name=words.model, weights=loaded.weights, rotate=bool(words.rotate), **options,
        on_stage=lambda stage: say(stage, stage=True),
    )  # fmt: skip
    manifest = bundle.manifest
    record = json.loads((Path(words.output) / "record.json").read_text(encoding="utf-8"))
    if words.json:
        return {"model": manifest.model, "macs_ratio": manifest.macs_ratio, **record}
    say(f"model             {manifest.model}, weights {manifest.weights}, {manifest.dtype}")
    say(f"method            {manifest.method}, backend {manifest.backend}")
    dense = list(record["dense"].values())
    say(f"layers            {len(record['sparse'])} read fewer inputs, {len(dense)} stay dense")
    for why in sorted(set(dense)):
        say(f"                  {dense.count(why)} x {why}")
    for name, note in record["notes"].items():
        say(f"{name:<17} {note}")
    say(f"MACs a token      {manifest.macs_dense / 1e9:.4f} G -> {manifest.macs / 1e9:.4f} G "
        f"({manifest.macs_ratio:.3f})")  # fmt: skip
    for rows, _ in manifest.macs_above:
        say(f"                  {manifest.macs_ratio_at(rows + 1):.3f} where more than "
            f"{rows} are computed at once")  # fmt: skip
    if manifest.weights == "random":
        say("note              random weights: speed and structure only, no quality")
    if isinstance(engine := bundle.engines["compressed"], UnbuiltEngine):
        say(f"engines           {engine.told}")
    say(f"bundle            {words.output}")
    return {}


def _check_planned(words: Namespace) -> None:
    """Raises UsageError where a planner has no texts, or is asked for what it leaves alone."""
    if words.rotate:
        raise UsageError(
            "the planner does not rotate", found="--rotate with --target or --floor",
            fix="--keep 0.5 --rotate",
        )  # fmt: skip
    if words.texts is None:
        raise UsageError(
            "a planner of a language model needs texts",
            found="--target or --floor without --texts",
            fix="--texts FILE, one a line",
        )


def _planned(
    words: Namespace, model: nn.Module, texts: list[list[int]], say: Say, **options: Any
) -> Plan:
    """The plan that `--target` and `--floor` ask for."""
    say(f"planning on {len(texts)} texts, at most {words.minutes:g} minutes", stage=True)
    program, speaking = capture(model), capture(model, every=True)
    with say.bar("trials", None) as advance:
        made = keep_for(
            program, speaking, texts, target=words.target, floor=words.floor,
            minutes=words.minutes, progress=advance, **options,
        )  # fmt: skip
    for line in made.notes["why"]:  # type: ignore[union-attr]
        say(f"  {line}")
    say(
        f"{made.notes['recipe']}: {made.notes['macs_ratio']} of the MACs a token, KL "
        f"{made.notes['kl_unseen']}, agreement {made.notes['agreement_unseen']:.1%} on texts the "
        "search did not see",
        stage=True,
    )
    return made


def generate(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Goes on with one prompt."""
    if words.image:
        raise UsageError("a language model takes no picture", found="--image", fix="leave it out")
    if words.mapped or words.device != "cpu":
        raise UsageError(
            "bundles of language models run on the CPU, one engine at a time",
            found="--mapped" if words.mapped else f"--device {words.device}",
            fix="leave it out",
        )
    bundle = load(words.bundle, threads=words.threads)
    prompt = words.prompt if words.tokens is None else words.tokens
    found = bundle.generate(
        prompt, max_new_tokens=words.max_new_tokens, temperature=words.temperature,
        top_k=words.top_k, top_p=words.top_p, seed=words.seed,
    )  # fmt: skip
    text = None if bundle.text is None else bundle.text.text(found)
    if words.json:
        return {"text": text, "tokens": found}
    print(text if text is not None else ",".join(map(str, found)), file=sys.stdout)
    return {}


def read_texts(path: Path, tokenizer: Any) -> list[list[int]]:
    """Texts of a file, one a line: a list of token numbers, or words if there is a tokenizer.

    Raises:
        ModelError: The file cannot be read.
        UsageError: A line holds words and there is no tokenizer.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read texts from {path}",
            found=str(error)[:200],
            fix="a text file in UTF-8, one text a line",
        ) from error
    found: list[list[int]] = []
    for number, line in enumerate(lines):
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if isinstance(data, list) and all(isinstance(n, int) for n in data):
            found.append(data)
        elif tokenizer is not None and line.strip():
            found.append(list(tokenizer(line)["input_ids"]))
        elif line.strip():
            raise UsageError(
                f"line {number + 1} of {path} is no list of token numbers",
                found=line[:60],
                fix="[1, 403, 207], or a model folder with its tokenizer",
            )
    return found


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--keep {text!r} is no share", found=text, fix="--keep 0.5") from error
