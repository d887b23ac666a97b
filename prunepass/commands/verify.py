"""`prunepass verify`: a bundle says and keeps the same in every backend that runs here."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from prunepass.backends.table import BACKENDS
from prunepass.bundle import read_manifest
from prunepass.commands.pictures_only import check_pictures
from prunepass.commands.request import Say
from prunepass.errors import ModelError, UsageError
from prunepass.sources.pictures import find_pictures
from prunepass.sources.preprocess import Preprocessing
from prunepass.verifying import Row, verify

_PICTURES = 8
"""Pictures of `--images` that are compared."""


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument(
        "--backends", metavar="B,B,...", help=f"which to compare (default: {','.join(BACKENDS)})"
    )
    parser.add_argument("--images", metavar="DIR", help="pictures to compare on (default: noise)")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Compares a bundle in several backends with its program."""
    check_pictures(
        words.bundle, verb="verify",
        instead="compile compared its engines with their programs; `prunepass bench` times them",
    )  # fmt: skip
    names = tuple(words.backends.split(",")) if words.backends else tuple(BACKENDS)
    pictures = None
    if words.images:
        pictures = _pictures(words.images, read_manifest(words.bundle).preprocessing)
    rows = verify(
        words.bundle, backends=names, pictures=pictures,
        on_stage=lambda stage: say(stage, stage=True),
    )  # fmt: skip
    for row in rows:
        say(_line(row))
    result = {"bundle": str(words.bundle), "rows": [asdict(row) for row in rows]}
    ran = [row for row in rows if row.same is not None]
    wrong = [row for row in ran if not row.same]
    if wrong or not ran:
        if words.json:
            print(json.dumps(result))
        raise ModelError(
            f"{words.bundle} is not the same everywhere" if wrong else "nothing could be compared",
            found="; ".join(f"{row.part} in {row.backend}" for row in wrong or rows),
            fix="compile again, or use a backend that agrees" if wrong else "--backends onnx",
        )
    return result


def _line(row: Row) -> str:
    start = f"  {row.part:<11} {row.backend:<13} {row.engine:<7}"
    if row.difference is None:
        return f"{start} {'fails' if row.same is False else 'cannot run'}: {row.why}"
    kept = "" if row.kept is None else f"   kept tokens {row.kept:.1%}"
    return f"{start} {'same' if row.same else 'DIFFERS':<8} outputs {row.difference:.1e}{kept}"


def _pictures(folder: str, held: Mapping[str, Any] | None) -> torch.Tensor:
    if held is None:
        raise UsageError(
            "the bundle does not say how pictures are prepared", found="--images",
            fix="leave --images out",
        )  # fmt: skip
    pictures = find_pictures(folder, labelled=False)
    return next(iter(pictures.batches(Preprocessing.from_dict(held), _PICTURES)))[0]
