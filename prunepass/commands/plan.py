"""`prunepass plan`: a plan, written to a file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from prunepass.bundle_files import write_text
from prunepass.capturing import capture
from prunepass.commands.planning import check_together, made_plan
from prunepass.commands.request import Say, check_request, load
from prunepass.commands.words import model_arguments, planning_arguments
from prunepass.errors import UsageError
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.methods import DOWNSAMPLE


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    model_arguments(parser)
    planning_arguments(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="plan.json to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Makes a plan and writes it."""
    check_together(words)
    output = Path(words.output)
    if output.exists() and not words.force:
        raise UsageError(f"{output} exists", found="a file", fix="--force replaces it")
    if words.method == DOWNSAMPLE:
        raise UsageError(
            "the down-sampling baseline has no plan",
            found=DOWNSAMPLE,
            fix=f"prunepass compile {words.model} --method {DOWNSAMPLE} --flops R -o DIR",
        )
    if words.method in INPUT_METHODS:
        raise UsageError(
            f"plans of {words.method!r} are made when a language model is compiled",
            found=f"prunepass plan --method {words.method}",
            fix="prunepass compile hf/FOLDER --method wina --keep 0.5 -o DIR, whose plan.json "
            "--plan takes again",
        )
    check_request(words)
    loaded = load(words)
    say("capturing", stage=True)
    program = capture(loaded.module, (loaded.example(),))
    made = made_plan(words, program, loaded, say)
    write_text(output, made.to_json())
    say(f"{output}: {len(made.steps)} steps, {made.notes.get('macs_ratio')} of the MACs")
    return {
        "plan": str(output),
        "method": made.method,
        "steps": len(made.steps),
        "macs_ratio": made.notes.get("macs_ratio"),
    }
