"""What the words of a command line ask for, read once for all commands."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from prunepass.bundle import FILE
from prunepass.calibrate import Batch
from prunepass.errors import PlanError, UsageError
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE, method
from prunepass.plans import Plain
from prunepass.sources.language import is_language
from prunepass.sources.model import LoadedModel, load_model
from prunepass.sources.pictures import find_pictures
from prunepass.sources.vision_language import is_vision_language
from prunepass.terminal import Say as Say
from prunepass.vlm import commands as vlm_commands

BATCH = 16
"""Pictures of a batch that layers are scored on."""


def load(words: Namespace, *, image_size: int | None = None) -> LoadedModel:
    """The model that the words name, of another picture size if asked.

    Raises:
        UsageError: They name a bundle, or a model that reads text.
        ModelError: The model cannot be had.
    """
    check_model(words.model)
    if is_language(words.model):
        raise UsageError(
            f"{words.command} does not take language models", found=words.model,
            fix=f"prunepass inspect {words.model} lists what can read fewer inputs, "
            "compile --method wina --keep 0.5 -o DIR lets it",
        )  # fmt: skip
    if is_vision_language(words.model):
        raise UsageError(
            f"{words.command} does not take vision-language models", found=words.model,
            fix=f"prunepass layers {words.model} scores its layers, "
            "compile --method transprune -o DIR prunes its image tokens",
        )  # fmt: skip
    return load_model(
        words.model,
        weights=words.weights,
        image_size=image_size,
        mean=words.mean,
        std=words.std,
        crop=words.crop,
    )


def check_model(spec: str) -> None:
    """Nothing, unless a word names a bundle.

    Raises:
        UsageError: It does.
    """
    if (Path(spec) / FILE).is_file():
        raise UsageError(
            f"{spec} is a bundle, and no model",
            found=f"{FILE}: it is compiled already",
            fix=f"prunepass report {spec} -o FILE tells what was done; or name its model",
        )


def labelled_batches(words: Namespace, loaded: LoadedModel) -> Iterator[Batch]:
    """Pictures of `--images` with their labels, as the model takes them; none without it."""
    if not words.images:
        return
    for images, labels in find_pictures(words.images).batches(loaded.preprocessing, BATCH):
        yield Batch((images,), labels)


def plans_layers(words: Namespace) -> bool:
    """Whether layers are to be dropped, or a planner decides."""
    return any(getattr(words, n) is not None for n in ("drop_layers", "target", "floor"))


def check_request(words: Namespace) -> None:
    """Refuses what needs no model to be refused."""
    if words.flops is None and plans_layers(words):
        return
    name = words.method or DEFAULT
    named = ("action", "at", "images", "keep", "option")
    ignored = [n for n in named if getattr(words, n) is not None]
    if name == DOWNSAMPLE and ignored:
        raise UsageError(
            "down-sampling reduces no tokens inside the graph",
            found=f"--method {DOWNSAMPLE} together with --{ignored[0]}",
            fix="leave it out",
        )
    if name != DOWNSAMPLE:
        chosen = method(name)
        if words.flops is None and words.keep is None and chosen.shape != "stages":
            raise UsageError(
                f"method {name!r} needs a budget", found="no --flops", fix="--flops 0.6"
            )
        shares_of(words.keep)
        options_of(words.option)
        if words.keep is not None and words.images is not None:
            raise UsageError(
                "--images searches what to keep",
                found="--images together with --keep",
                fix="leave out one of them",
            )
    elif words.flops is None:
        raise UsageError(f"method {name!r} needs a budget", found="no --flops", fix="--flops 0.6")
    if words.flops is not None and not 0 < words.flops <= 1:
        raise PlanError(
            "--flops is a share of the dense model's MACs, in (0, 1]",
            found=str(words.flops),
            fix="--flops 0.6 asks for 60 %",
        )


def shares_of(text: str | None) -> tuple[float, ...] | None:
    """`--keep` as shares of the tokens that arrive at each block.

    Raises:
        UsageError: It is no list of numbers.
    """
    found = vlm_commands.shares(text)
    if isinstance(found, str):
        raise UsageError(f"--keep {text!r} is no list of shares", found=found, fix="--keep 0.7")
    return found


def options_of(given: Sequence[str] | None) -> dict[str, Plain] | None:
    """`--option NAME=VALUE` of the method's rule; values are JSON, or words as they stand.

    Raises:
        UsageError: One has no value.
    """
    found: dict[str, Plain] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise UsageError(
                f"--option {text!r} names no value", found=text, fix="--option alignment=hold"
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found or None
