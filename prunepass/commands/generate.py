"""`prunepass generate`: a bundle answers a prompt."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from prunepass.bundle import read_manifest
from prunepass.commands.request import Say
from prunepass.commands.words import blocks
from prunepass.errors import UsageError
from prunepass.language import commands as language_commands
from prunepass.language.manifest import is_language_bundle
from prunepass.vlm import commands as vlm_commands
from prunepass.vlm.manifest import is_vlm_bundle


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument("--image", action="append", metavar="FILE", help="a picture, or several")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT")
    asked.add_argument(
        "--tokens", type=blocks, metavar="N,N,...", help="token numbers, of a language model"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    parser.add_argument("--top-k", type=int, metavar="N")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument(
        "--mapped", action="store_true",
        help="of a vision-language model: weights once in memory, tokens take longer",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, of ONNX Runtime")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Answers a prompt with a bundle."""
    if is_language_bundle(words.bundle):
        return language_commands.generate(words, say=say)
    if not is_vlm_bundle(words.bundle):
        told = read_manifest(words.bundle)  # raises where there is none
        raise UsageError(
            f"{words.bundle} is the bundle of a model of pictures alone, which answers nothing",
            found=told.model,
            fix="a bundle of a language or vision-language model; `prunepass eval` takes this one",
        )
    return vlm_commands.generate(words, say=say)
