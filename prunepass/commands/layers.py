"""`prunepass layers`: how important each layer of a model is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from prunepass.bundle_files import write_text
from prunepass.capturing import capture
from prunepass.commands.planning import scored
from prunepass.commands.request import Say, labelled_batches, load
from prunepass.commands.words import model_arguments
from prunepass.errors import UsageError
from prunepass.importance.scores import LayerScores
from prunepass.importance.table import LAYER_SCORES
from prunepass.layer_plot import rows, svg
from prunepass.sources.vision_language import is_vision_language
from prunepass.vlm import layers as vlm_layers


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    model_arguments(parser)
    parser.add_argument(
        "--score", default="lim", metavar="S,S,...",
        help="lim (default), zd, bi, ecoflap, ecoflap-first, suppress, wpca",
    )  # fmt: skip
    parser.add_argument("--images", metavar="DIR", help="pictures to score on (zd needs none)")
    parser.add_argument("--texts", metavar="FILE", help="prompts to score on, one a line")
    parser.add_argument("--branches", action="store_true", help="attention and MLP apart")
    parser.add_argument(
        "--tap", choices=("block", "module"), default="block",
        help="lim and bi over the boundary (block, default), or of what a branch adds (module)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="write a picture, .svg")
    parser.add_argument("--checkpoint", metavar="FILE", help="go on from where a run stopped")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
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
        loaded = load(words)
        say("capturing", stage=True)
        program = capture(loaded.module, (loaded.example(),))
        batches = labelled_batches(words, loaded)
    say("scoring " + ", ".join(names), stage=True)
    found = scored(program, batches, names, words, say)
    if place is not None:
        write_text(place, svg(found, branches=words.branches, title=f"layers of {words.model}"))
        say(f"plot              {place}")
    if words.json:
        return {
            "model": words.model, "batches": found.batches, "tap": found.tap,
            "scores": {name: dict(values) for name, values in found.values.items()},
            "order": {n: found.order(n, branches=words.branches) for n in found.values},
        }  # fmt: skip
    _print(found, say, branches=words.branches)
    for name in found.values:
        order = found.order(name, branches=words.branches)
        say(f"{name:<15} least important first: {' '.join(order)}")
    return {}


def _print(found: LayerScores, say: Say, *, branches: bool) -> None:
    columns = ["layer"]
    for name in found.values:
        more = "" if LAYER_SCORES[name].high_matters else " (less is more)"
        columns += [name + more, "importance"]
    say.table(columns, rows(found, branches=branches))
