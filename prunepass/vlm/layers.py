"""Layers of a language model: scored on prompts of text, and taken out of its programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from prunepass.analyse.sequence import hoist_in_layers
from prunepass.analyse.sites import label_sites
from prunepass.calibrate import Batch
from prunepass.errors import ModelError, PlanError, UsageError
from prunepass.graph import meta
from prunepass.importance.scores import layer_scores
from prunepass.passes.bind_image_steps import branches_read
from prunepass.passes.drop_layers import drop_layers
from prunepass.planners.layers import lowest
from prunepass.plans import Step
from prunepass.sources.vision_language import load_vision_language
from prunepass.vlm.facts import facts
from prunepass.vlm.layout import Layout
from prunepass.vlm.patches import pictures_of
from prunepass.vlm.processor import fast_tokenizer
from prunepass.vlm.programs import capture_language
from prunepass.vlm.split import split

BATCH = 8
EXAMPLE_TOKENS = 4
"""Image tokens that the program for scoring is captured with; it takes any prompt."""


def without_layers(program: ExportedProgram, sites: Sequence[str]) -> ExportedProgram:
    """A language program without some layers; those that stay are counted anew, as caches are.

    Args:
        program: A captured language model, nothing pruned.
        sites: `block[3]`, `block[3].attention` or `block[3].mlp`, of the program given.

    Raises:
        PlanError: A site is unknown, or no attention would be left.
    """
    steps = [Step(kind="drop_layers", site=site) for site in sites]
    smaller, _ = drop_layers(program, steps)
    meta.clear_labels(smaller.graph)
    smaller = label_sites(smaller)
    hoist_in_layers(smaller)
    return smaller


def layers_left(layers: int, sites: Sequence[str]) -> int:
    """Layers with a cache that are left of so many.

    Raises:
        PlanError: A site names none of them.
    """
    for site in sites:
        number = site.removeprefix("block[").partition("]")[0]
        if not number.isdecimal() or int(number) >= layers:
            raise PlanError(
                f"there is no layer {site!r}", found=f"{layers} layers",
                fix=f"block[0] to block[{layers - 1}]",
            )  # fmt: skip
    return len(numbers_left(layers, sites))


def numbers_left(layers: int, sites: Sequence[str]) -> list[int]:
    """Which layers with a cache are left of so many."""
    gone = {s.partition(".")[0] for s in sites if "." not in s or s.endswith(".attention")}
    return [number for number in range(layers) if f"block[{number}]" not in gone]


def check_scored(
    program: ExportedProgram, steps: Sequence[Step], *, method: str, left: Sequence[int]
) -> None:
    """Nothing, if a program has the modules that a method scores image tokens by.

    Args:
        program: A language program, with or without some layers.
        steps: Of the method, on this program.
        method: Its name.
        left: Which layers of the model the program has.

    Raises:
        PlanError: One was taken out; it is named as the model has it.
    """
    there = meta.labelled(program.graph)
    for site in branches_read(steps):
        number, branch = int(site[len("block[") : site.index("]")]), site.rpartition(".")[2]
        # What prunes behind layers that the model has not is refused where it is bound.
        if number < len(left) and f"{site}:input" not in there:
            gone = f"block[{left[number]}].{branch}"
            raise PlanError(
                f"method {method!r} scores image tokens by how {gone} changes them",
                found=f"{gone} is taken out",
                fix=f"leave {gone} in, or a method that scores by no layer's change: instruction",
            )


def chosen_layers(
    model: nn.Module, processor: Any, count: int, *, score: str, texts: Path | None
) -> tuple[str, ...]:
    """Sites of the least important layers of a model's language model, first and last left alone.

    Raises:
        ModelError: The score needs texts and there are none.
        PlanError: There are not so many.
    """
    program = _captured(model)
    batches = prompts(model, processor, texts) if texts is not None else iter(())
    order = layer_scores(program, batches, scores=[score]).order(score)
    return tuple(step.site for step in lowest(order, count, blocks=len(order)))


def calibration(
    spec: str, weights: str, texts: str | None
) -> tuple[ExportedProgram, Iterator[Batch]]:
    """The language program of a model by name, and batches of prompts out of a file."""
    loaded = load_vision_language(spec, weights=weights)
    program = _captured(loaded.module)
    if texts is None:
        return program, iter(())
    return program, prompts(loaded.module, loaded.processor, Path(texts))


def prompts(model: nn.Module, processor: Any, texts: Path) -> Iterator[Batch]:
    """Batches of prompts, one a line of a file; what is right is the last token of each.

    Raises:
        ModelError: The file cannot be read or holds no prompt of two tokens.
        UsageError: The model has no tokenizer.
    """
    tokenizer = fast_tokenizer(processor)
    if tokenizer is None:
        raise UsageError(
            "prompts of text need a tokenizer", found="the model has none",
            fix="a model folder with tokenizer.json, or --score zd",
        )  # fmt: skip
    try:
        lines = texts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read {texts}", found=str(error)[:200], fix="--texts FILE of text, UTF-8"
        ) from error
    numbers = [tokenizer.encode(line).ids for line in lines if line.strip()]
    numbers = [n for n in numbers if len(n) > 1]
    if not numbers:
        raise ModelError(
            f"{texts} holds no prompt", found=f"{len(lines)} lines", fix="a prompt of words a line"
        )
    for start in range(0, len(numbers), BATCH):
        yield prompt_batch(model, numbers[start : start + BATCH])


@torch.no_grad()
def prompt_batch(model: nn.Module, numbers: Sequence[Sequence[int]]) -> Batch:
    """A batch of prompts without images; the last token of each is what is right."""
    pictures = pictures_of(model)
    known = facts(model, pictures)
    layout = Layout(-1, 2, known.padding, known.grid_of)
    made = layout.prompts([list(n[:-1]) for n in numbers], [0] * len(numbers))
    embeds = split(model, pictures).embedding(made.input_ids)
    images = torch.zeros(len(numbers), 1, 2, dtype=torch.int64)
    inputs = (
        embeds, made.attention_mask, made.position_ids, images, made.asking_positions,
        made.asking_votes,
    )  # fmt: skip
    right = torch.tensor([n[-1] for n in numbers])
    return Batch(inputs, right, made.attention_mask)


def _captured(model: nn.Module) -> ExportedProgram:
    pictures = pictures_of(model)
    known = facts(model, pictures)
    return capture_language(
        split(model, pictures).language, channels=known.channels, image_tokens=EXAMPLE_TOKENS,
        position_rows=1 if known.grid_of is None else 3, dtype=known.dtype, any_image_tokens=True,
    )  # fmt: skip
