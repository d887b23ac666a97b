"""`prunepass export`: a bundle for a model server."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunepass.commands.pictures_only import check_pictures
from prunepass.commands.request import Say
from prunepass.serving.triton_repository import export


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument(
        "--triton-repository", metavar="REPO", type=Path, required=True,
        help="the model repository of NVIDIA Triton to write to",
    )  # fmt: skip
    parser.add_argument("--name", help="what the models are called (default: as the bundle's)")
    parser.add_argument(
        "--max-batch", type=int, default=64, metavar="N", help="largest batch that is formed (64)"
    )
    parser.add_argument(
        "--delay", type=int, default=100, metavar="US",
        help="microseconds a request waits for others (100)",
    )  # fmt: skip


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Writes a bundle into a model repository."""
    check_pictures(
        words.bundle, verb="export",
        instead="prunepass.language.load or prunepass.vlm.load in a server of your own",
    )  # fmt: skip
    repository = words.triton_repository
    served = export(
        words.bundle, repository, name=words.name, most=words.max_batch, delay=words.delay
    )
    for one in served:
        say(f"{one.name:<40} version {one.version}")
    say(f"tritonserver --model-repository={repository}")
    return {"repository": str(repository), "models": [asdict(one) for one in served]}
