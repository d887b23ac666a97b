"""`prunepass report`: what a bundle is and does, as one HTML file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from prunepass.bundle import kind_of, read_manifest
from prunepass.bundle_files import write_text
from prunepass.commands.request import Say
from prunepass.errors import UsageError
from prunepass.html.page import MOST_BYTES, page
from prunepass.seeing.gather import Wanted, gather


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument(
        "--images", metavar="DIR", help="measure quality on these pictures, and show some of them"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="of a vision-language model: a question about them"
    )
    parser.add_argument("--limit", type=int, default=64, metavar="N", help="most of them (64)")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="time N runs of each")
    parser.add_argument("--bench", metavar="FILE", type=Path, help="what `bench --json` printed")
    parser.add_argument("--doctor", metavar="FILE", type=Path, help="what `doctor --json` printed")
    parser.add_argument("--layers", metavar="FILE", type=Path, help="what `layers --json` printed")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=Path("report.html"),
        help="file to write (report.html)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Writes the report of a bundle."""
    if kind_of(words.bundle) is None:
        read_manifest(words.bundle)
    if words.output.suffix.lower() not in (".html", ".htm"):
        raise UsageError("a report is HTML", found=words.output.name, fix="-o report.html")
    if words.output.exists() and not words.force:
        raise UsageError(f"{words.output} exists", found="a file", fix="--force replaces it")
    if words.limit < 1 or (words.runs and words.runs < 3):
        raise UsageError(
            "a report needs a picture at least, and three runs or none",
            found=f"--limit {words.limit} --runs {words.runs}",
            fix="--limit 64 --runs 30",
        )
    wanted = Wanted(
        images=words.images, limit=words.limit, runs=words.runs, bench=words.bench,
        doctor=words.doctor, layers=words.layers, prompt=words.prompt,
    )  # fmt: skip
    facts = gather(words.bundle, wanted, lambda text: say(text, stage=True))
    text = page(facts)
    size = len(text.encode())
    if size > MOST_BYTES:
        raise UsageError(
            f"the report would be larger than {MOST_BYTES / 1e6:g} MB",
            found=f"{size / 1e6:.1f} MB",
            fix="no --images, or a plan with fewer notes",
        )
    write_text(words.output, text)
    if not words.images and kind_of(words.bundle) is None:
        say("no quality, no picture: --images DIR measures and shows them", stage=True)
    say(f"{words.output}  {size / 1e3:.0f} kB")
    return {"output": str(words.output), "bytes": size, "sections": text.count("<section")}
