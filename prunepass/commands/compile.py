"""`prunepass compile`: a model becomes a bundle."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, cast

from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle import read_plan
from prunepass.bundle_files import check_free
from prunepass.capturing import capture
from prunepass.commands.building import backend_arguments, backend_of
from prunepass.commands.planning import check_together, made_plan
from prunepass.commands.request import (
    Say,
    check_request,
    load,
    options_of,
    plans_layers,
    shares_of,
)
from prunepass.commands.words import batch_size, blocks, model_arguments, planning_arguments
from prunepass.compiler import compile as compile_model
from prunepass.downsample import downsample
from prunepass.errors import UsageError
from prunepass.language import commands as language_commands
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE
from prunepass.sources.language import is_language
from prunepass.sources.vision_language import is_vision_language
from prunepass.vlm import commands as vlm_commands

_PLANNING = ("method", "flops", "images", "action", "at", "keep", "option")
"""Options that say how a plan is made."""


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    model_arguments(parser)
    planning_arguments(parser)
    parser.add_argument("--plan", metavar="FILE", help="carry out this plan")
    backend_arguments(parser)
    parser.add_argument(
        "--no-program", action="store_true",
        help="leave the program out of the bundle, which `verify` needs",
    )  # fmt: skip
    parser.add_argument("--batch", default="dynamic", help="a batch size, or dynamic (default)")
    parser.add_argument(
        "--rotate", action="store_true", default=None,
        help="of a language model: rotate it first, so that k and gate have orthogonal columns",
    )  # fmt: skip
    parser.add_argument(
        "--smallest", type=int, metavar="N", help="numbers of a weight below which it stays dense"
    )
    parser.add_argument(
        "--decode-keep", type=float, metavar="K",
        help="of a vision-language model: share of inputs that linear layers read when decoding",
    )  # fmt: skip
    parser.add_argument("--decode-method", help="how they are chosen: wina (default), teal, ...")
    parser.add_argument("--dtype", help="of a language model: float32 (default) or bfloat16")
    parser.add_argument(
        "--after", type=blocks, metavar="L,L,...", help="layers behind which they go, from 1"
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="texts to score layers or to calibrate on, one a line",
    )
    parser.add_argument("--positions", choices=("keep_original", "compact"))
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="where a model takes any size"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="bundle to write")
    parser.add_argument("--force", action="store_true", help="replace the bundle if it is there")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Compiles a model into a bundle."""
    check_together(words)
    pictures_too, text_alone = is_vision_language(words.model), is_language(words.model)
    backend = backend_of(words, text=pictures_too or text_alone)
    if pictures_too:
        return vlm_commands.compile(words, backend=backend, say=say)
    if text_alone:
        return language_commands.compile(words, backend=backend, say=say)
    texts = [n for n in vlm_commands.ONLY_TEXT if getattr(words, n) is not None]
    if texts:
        raise UsageError(
            f"{words.model} is a model of pictures alone",
            found=", ".join("--" + n.replace("_", "-") for n in texts),
            fix="--method and --flops say what is reduced",
        )
    folder, batch = Path(words.output), batch_size(words.batch)
    check_free(folder, force=words.force)
    given = None
    if words.plan is not None:
        given_too = [n for n in _PLANNING if getattr(words, n) is not None]
        if given_too:
            raise UsageError(
                "--plan says what is done already",
                found="--plan together with " + ", ".join(f"--{n}" for n in given_too),
                fix="leave out the others",
            )
        given = read_plan(Path(words.plan))
        if given.method == DOWNSAMPLE:
            raise UsageError(
                "the down-sampling baseline is not carried out from a plan",
                found=f"{words.plan} of a bundle that was down-sampled",
                fix=f"prunepass compile {words.model} --method {DOWNSAMPLE} --flops R -o DIR",
            )
    else:
        check_request(words)
    loaded = load(words)
    options: dict[str, Any] = {
        "backend": backend,
        "folder": folder,
        "batch": batch,
        "force": words.force,
        "name": words.model,
        "weights": loaded.weights,
        "preprocessing": loaded.preprocessing.to_dict(),
        "on_stage": lambda stage: say(stage, stage=True),
    }
    inputs = (loaded.example(),)
    if given is None and words.method == DOWNSAMPLE:
        result = downsample(
            loaded,
            keep_program=not words.no_program,
            flops=words.flops,
            rebuild=lambda size: load(words, image_size=size).module,
            **options,
        )
    elif given is None and (words.images or plans_layers(words)):
        say("capturing", stage=True)
        program = capture(loaded.module, inputs)
        made = made_plan(words, program, loaded, say)
        result = compile_model(
            program, inputs, plan=made, keep_program=not words.no_program, **options
        )
    else:
        result = compile_model(
            loaded.module,
            inputs,
            method=words.method or DEFAULT,
            flops=words.flops,
            action=words.action,
            at=words.at,
            keep=shares_of(words.keep),
            options=options_of(words.option),
            plan=given,
            keep_program=not words.no_program,
            **options,
        )
    if words.json:
        return cast(dict[str, Any], json.loads(result.report.to_json()))
    say(str(result.report))
    if isinstance(result.engine, UnbuiltEngine):
        say(f"engine            not built yet: {result.engine.why}")
        say(f"                  {result.engine.commands} has the commands that build it")
    say(f"bundle            {folder}")
    return {}
