"""Plans that the command line asks for: by method, by search, by layers, by the planner."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.export import ExportedProgram

from prunepass.calibrate import Batch
from prunepass.commands.request import Say, labelled_batches, options_of, shares_of
from prunepass.commands.words import batch_size
from prunepass.errors import UsageError
from prunepass.importance.scores import LayerScores, layer_scores
from prunepass.planners.budget import plan as make_plan
from prunepass.planners.layers import lowest, named, wanted
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE
from prunepass.plans import Plain, Plan, Step
from prunepass.search.decide import plan_for
from prunepass.search.recipe import Recipe, Recipes
from prunepass.search.schedule import search
from prunepass.sources.model import LoadedModel
from prunepass.sources.pictures import NO_LABEL, find_pictures

DEFAULT_SCORE = "lim"
DROPPING = ("drop_layers", "score")
PLANNING = ("target", "floor")


def made_plan(words: Namespace, program: ExportedProgram, loaded: LoadedModel, say: Say) -> Plan:
    """The plan that the words ask for: by a planner, by layers, by a search or by a method."""
    if words.target is not None or words.floor is not None:
        return target_plan(words, loaded, program, say)
    if words.drop_layers is not None:
        return drop_plan(words, loaded, program, say)
    name = words.method or DEFAULT
    if words.images:
        return _searched(words, name, program, loaded, say)
    return make_plan(
        program, method=name, flops=words.flops, action=words.action, at=words.at,
        keep=shares_of(words.keep), options=options_of(words.option),
    )  # fmt: skip


def _searched(
    words: Namespace, name: str, program: ExportedProgram, loaded: LoadedModel, say: Say
) -> Plan:
    """The schedule of a method that does least harm to the pictures of `--images`."""
    if words.flops is None:
        raise UsageError("a search needs a budget", found="--images without --flops", fix="--flops")
    pictures = find_pictures(words.images, labelled=False)
    if loaded.weights == "random":
        say("the weights are random: a schedule that is found for them says nothing", stage=True)
    say(
        f"searching a schedule on {len(pictures)} pictures, {words.minutes:g} minutes at most",
        stage=True,
    )
    images = torch.cat([x for x, _ in pictures.batches(loaded.preprocessing, 32)])
    with say.bar("schedules", None) as advance:
        found = search(
            program,
            images,
            method=name,
            flops=words.flops,
            action=words.action,
            at=words.at,
            minutes=words.minutes,
            progress=advance,
        )
    say(
        f"{found.tried} schedules tried; KL {found.kl_fit:.4f} where chosen, "
        f"{found.kl_unseen:.4f} +- {found.kl_error:.4f} on pictures the search did not see",
        stage=True,
    )
    return found.plan


def drop_plan(words: Namespace, loaded: LoadedModel, program: ExportedProgram, say: Say) -> Plan:
    """The plan that `--drop-layers` asks for, with a reduction of tokens behind it if `--flops`."""
    recipes = Recipes(program)
    steps = chosen_layers(words, program, lambda: labelled_batches(words, loaded), say)
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
    found = scored(program, batches(), [name], words, say)
    order = found.order(name)
    return lowest(order, asked, blocks=len(order))


def target_plan(words: Namespace, loaded: LoadedModel, program: ExportedProgram, say: Say) -> Plan:
    """The plan that `--target` and `--floor` ask for."""
    if not words.images:
        raise UsageError(
            "a planner needs pictures", found="--target or --floor without --images",
            fix="--images DIR",
        )  # fmt: skip
    pictures = find_pictures(words.images, labelled=False)
    say(f"planning on {len(pictures)} pictures, at most {words.minutes:g} minutes", stage=True)
    parts = list(pictures.batches(loaded.preprocessing, 32))
    images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    memory = Path(words.output).with_name(f"{Path(words.output).name}.search.jsonl")
    memory.parent.mkdir(parents=True, exist_ok=True)
    batch = batch_size(getattr(words, "batch", "dynamic"))
    with say.bar("trials", None) as advance:
        made = plan_for(
            program, images, target=words.target, floor=words.floor,
            labels=None if NO_LABEL in pictures.labels else labels,
            minutes=words.minutes, backend=getattr(words, "backend", "onnx"), batch=batch,
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
    decided = ("method", "flops", "action", "at", "plan", "keep", "option", *dropping)
    others = [n for n in decided if getattr(words, n, None) is not None]
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


def scored(
    program: ExportedProgram,
    batches: Iterator[Batch],
    names: list[str],
    words: Namespace,
    say: Say,
) -> LayerScores:
    """The scores of layers, with the options that the words give."""
    path = getattr(words, "checkpoint", None)
    with say.bar("examples", None) as advance:
        return layer_scores(
            program, batches, scores=names, tap=getattr(words, "tap", "block"),
            checkpoint=None if path is None else Path(path), progress=advance,
        )  # fmt: skip
