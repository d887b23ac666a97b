"""What the command line does with layers: scoring them, dropping them, planning over everything."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from prunepass.bundle import write_text
from prunepass.calibrate import Batch
from prunepass.capture import capture
from prunepass.errors import UsageError
from prunepass.importance.scores import LayerScores, layer_scores
from prunepass.importance.table import LAYER_SCORES
from prunepass.layer_plot import rows, svg
from prunepass.plan import Plain, Plan, Step
from prunepass.planners.layers import lowest, named, wanted
from prunepass.planners.methods import DOWNSAMPLE
from prunepass.progress import bar
from prunepass.search.decide import plan_for
from prunepass.search.recipe import Recipe, Recipes
from prunepass.sources.model import LoadedModel, load_model
from prunepass.sources.pictures import find_pictures
from prunepass.sources.vision_language import is_vision_language
from prunepass.vlm import layers as vlm_layers

Say = Callable[..., None]
DEFAULT_SCORE = "lim"
BATCH = 16
DROPPING = ("drop_layers", "score")
PLANNING = ("target", "floor")


def layers(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Scores the layers of a model."""
    names = [name.strip() for name in words.score.split(",") if name.strip()]
    place = None if words.plot is None else Path(words.plot)
    if place is not None and place.suffix != ".svg":
        raise UsageError("--plot writes SVG", found=words.plot, fix="--plot layers.svg")
    if is_vision_language(words.model):
        if words.images:
            raise UsageError(
                f"{words.model} is a vision-language model",
                found="--images",
                fix="--texts FILE, a prompt a line",
            )
        program, batches = vlm_layers.calibration(words.model, words.weights, words.texts)
    else:
        if words.texts:
            raise UsageError(
                f"{words.model} is a model of pictures alone", found="--texts", fix="--images DIR"
            )
        loaded = _load(words)
        say("capturing", stage=True)
        program = capture(loaded.module, (loaded.example(),))
        batches = _pictures(words, loaded)
    say("scoring " + ", ".join(names), stage=True)
    found = _scored(program, batches, names, words)
    if place is not None:
        write_text(place, svg(found, branches=words.branches, title=f"layers of {words.model}"))
        say(f"plot              {place}")
    if words.json:
        return {
            "model": words.model, "batches": found.batches, "tap": found.tap,
            "scores": {name: dict(values) for name, values in found.values.items()},
            "order": {n: found.order(n, branches=words.branches) for n in found.values},
        }  # fmt: skip
    _print(found, branches=words.branches)
    for name in found.values:
        order = found.order(name, branches=words.branches)
        say(f"{name:<15} least important first: {' '.join(order)}")
    return {}


def drop_plan(words: Namespace, loaded: LoadedModel, program: ExportedProgram, say: Say) -> Plan:
    """The plan that `--drop-layers` asks for, with a reduction of tokens behind it if `--flops`."""
    recipes = Recipes(program)
    steps = chosen_layers(words, program, lambda: _pictures(words, loaded), say)
    dropped = tuple(step.site for step in steps)
    ratio = recipes.ratio(steps)
    if words.flops is not None or words.method is not None:
        if words.flops is None:
            raise UsageError("--method needs a budget here", found="no --flops", fix="--flops 0.6")
        recipe = Recipe(words.method or "weighted-merge", None, dropped)
        steps = recipes.steps(recipe, words.flops)
        ratio = recipes.ratio(steps)
    notes: dict[str, Plain] = {"macs_ratio": round(ratio, 4), "dropped": list(dropped)}
    if words.score is not None:
        notes["score"] = words.score
    say(f"dropping {', '.join(dropped)}: {ratio:.3f} of the MACs", stage=True)
    method = words.method or ("weighted-merge" if words.flops else "drop-layers")
    return Plan(method=method, steps=steps, fingerprint=recipes.sites.fingerprint, notes=notes)


def chosen_layers(
    words: Namespace, program: ExportedProgram, batches: Callable[[], Iterator[Batch]], say: Say
) -> tuple[Step, ...]:
    """The steps that drop what `--drop-layers` and `--score` say."""
    asked = wanted(words.drop_layers)
    if not isinstance(asked, int):
        if words.score is not None:
            raise UsageError(
                "--drop-layers names its layers, so no score chooses", found="--score",
                fix="--drop-layers 3 --score " + words.score,
            )  # fmt: skip
        return named(asked)
    name = words.score or DEFAULT_SCORE
    say(f"scoring layers by {name}", stage=True)
    found = _scored(program, batches(), [name], words)
    order = found.order(name)
    return lowest(order, asked, blocks=len(order))


def target_plan(words: Namespace, loaded: LoadedModel, program: ExportedProgram, say: Say) -> Plan:
    """The plan that `--target` and `--floor` ask for."""
    if not words.images:
        raise UsageError(
            "a planner needs pictures", found="--target or --floor without --images",
            fix="--images DIR",
        )  # fmt: skip
    pictures = find_pictures(words.images)
    say(f"planning on {len(pictures)} pictures, at most {words.minutes:g} minutes", stage=True)
    parts = list(pictures.batches(loaded.preprocessing, 32))
    images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    memory = Path(words.output).with_name(f"{Path(words.output).name}.search.jsonl")
    memory.parent.mkdir(parents=True, exist_ok=True)
    with bar("trials", None) as advance:
        made = plan_for(
            program, images, target=words.target, floor=words.floor, labels=labels,
            minutes=words.minutes, backend=getattr(words, "backend", "onnx"),
            memory_file=memory, say=lambda text: say(text, stage=True), progress=advance,
        )  # fmt: skip
    memory.unlink(missing_ok=True)
    for line in made.notes["why"]:  # type: ignore[union-attr]
        say(f"  {line}")
    say(
        f"{made.notes['recipe']}: {made.notes['macs_ratio']} of the MACs, KL "
        f"{made.notes['kl_unseen']}, agreement {made.notes['agreement_unseen']:.1%} on pictures "
        "the search did not see",
        stage=True,
    )
    return made


def check_together(words: Namespace) -> None:
    """Raises UsageError where options of planning contradict each other."""
    planning = [n for n in PLANNING if getattr(words, n, None) is not None]
    dropping = [n for n in DROPPING if getattr(words, n, None) is not None]
    others = [n for n in ("method", "flops", "action", "at", "plan", *dropping)
              if getattr(words, n, None) is not None]  # fmt: skip
    if planning and others:
        raise UsageError(
            "the planner decides how, so nothing else may",
            found=", ".join(f"--{n.replace('_', '-')}" for n in [*planning, *others]),
            fix="--target and --floor, or the others",
        )
    if dropping and "drop_layers" not in dropping:
        raise UsageError(
            "--score chooses layers to drop", found="no --drop-layers", fix="--drop-layers 3"
        )
    if dropping and getattr(words, "method", None) == DOWNSAMPLE:
        raise UsageError(
            "a smaller picture and dropped layers are not planned together",
            found=f"--method {DOWNSAMPLE} with --drop-layers", fix="one of the two",
        )  # fmt: skip
    unfit = [
        n for n in ("action", "at", "plan") if dropping and getattr(words, n, None) is not None
    ]
    if unfit:
        raise UsageError(
            f"--drop-layers does not go with --{unfit[0]}", found=f"--{unfit[0]}",
            fix="--method and --flops do",
        )  # fmt: skip


def _scored(
    program: ExportedProgram, batches: Iterator[Batch], names: list[str], words: Namespace
) -> LayerScores:
    path = getattr(words, "checkpoint", None)
    with bar("examples", None) as advance:
        return layer_scores(
            program, batches, scores=names, tap=getattr(words, "tap", "block"),
            checkpoint=None if path is None else Path(path), progress=advance,
        )  # fmt: skip


def _pictures(words: Namespace, loaded: LoadedModel) -> Iterator[Batch]:
    if not words.images:
        return
    for images, labels in find_pictures(words.images).batches(loaded.preprocessing, BATCH):
        yield Batch((images,), labels)


def _load(words: Namespace) -> LoadedModel:
    return load_model(
        words.model, weights=words.weights, mean=words.mean, std=words.std, crop=words.crop
    )


def _print(found: LayerScores, *, branches: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for name in found.values:
        more = "" if LAYER_SCORES[name].high_matters else " (less is more)"
        table.add_column(name + more, justify="right")
        table.add_column("importance")
    for row in rows(found, branches=branches):
        table.add_row(*row)
    Console().print(table)
