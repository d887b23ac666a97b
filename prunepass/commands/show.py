"""`prunepass show`: which patches of a picture stay, or into which each is merged."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from prunepass.bundle_files import writing
from prunepass.commands.request import Say
from prunepass.errors import UsageError
from prunepass.language.manifest import is_language_bundle
from prunepass.seeing.look import Look, Looker
from prunepass.seeing.look_vlm import look as look_vlm
from prunepass.seeing.paint import left, sheet
from prunepass.vlm.loading import load
from prunepass.vlm.manifest import is_vlm_bundle

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument("--image", required=True, metavar="FILE", type=Path, help="a picture")
    parser.add_argument("--prompt", metavar="TEXT", help="of a vision-language model: a question")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", type=Path, help="picture to write"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Draws which patches stay."""
    if words.output.suffix.lower() not in SUFFIXES:
        raise UsageError(
            "show writes a picture", found=words.output.name, fix="-o tokens" + SUFFIXES[0]
        )
    if words.output.exists() and not words.force:
        raise UsageError(f"{words.output} exists", found="a file", fix="--force replaces it")
    found = _look(words)
    picture = sheet(found)
    with writing(words.output.resolve()):
        picture.save(words.output)
    total = len(found.stages[0].owner) if found.stages else 0
    rows = [[s.site, str(s.before), str(s.after), f"{left(s)} of {total}"] for s in found.stages]
    if rows:
        say.table(("site", "tokens before", "after", "patches have a token of their own"), rows)
    else:
        say("no patch goes anywhere in this bundle")
    say(f"{words.output}")
    return {
        "picture": str(words.image), "output": str(words.output), "grid": list(found.grid),
        "stages": [
            {"site": s.site, "before": s.before, "after": s.after, "owner": s.owner.tolist()}
            for s in found.stages
        ],
    }  # fmt: skip


def _look(words: Namespace) -> Look:
    if is_language_bundle(words.bundle):
        raise UsageError(
            "a language model sees no picture", found=str(words.bundle), fix="another bundle"
        )
    if is_vlm_bundle(words.bundle):
        if words.prompt is None:
            raise UsageError(
                "which image tokens stay depends on what is asked",
                found="no --prompt",
                fix='--prompt "What is it?"',
            )
        return look_vlm(load(words.bundle), words.image, words.prompt)
    if words.prompt is not None:
        raise UsageError("this model reads no prompt", found="--prompt", fix="leave it out")
    return Looker(words.bundle)(words.image)
