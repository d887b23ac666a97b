"""The command line; `prunepass.commands` holds the commands."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence

import prunepass
from prunepass.commands import COMMANDS
from prunepass.errors import PrunepassError

_ERROR = "prunepass: "


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 model or plan, 2 usage, 3 backend.

    A command that ran may still say 1: `prunepass doctor` where something would fail.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(given[0] if given else None)
    words = parser.parse_args(given)
    if words.version:
        print(f"prunepass {prunepass.__version__}")
        return 0
    if words.command is None:
        parser.print_help()
        return 2
    command = importlib.import_module(f"prunepass.commands.{words.command}")
    try:
        result = command.run(words, say=_say(words))
    except PrunepassError as error:
        print(f"{_ERROR}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_ERROR}interrupted", file=sys.stderr)
        return 130
    if getattr(words, "json", False):
        print(json.dumps(result))
    told = getattr(command, "exit_code", None)
    return told(result) if told is not None else 0


def _say(words: argparse.Namespace) -> Callable[..., None]:
    """Prints to a person; with --json everything goes to standard error instead."""
    stream = sys.stderr if getattr(words, "json", False) else sys.stdout
    start = time.perf_counter()

    def say(text: str, *, stage: bool = False) -> None:
        if getattr(words, "quiet", False) and stage:
            return
        prefix = f"[{time.perf_counter() - start:6.1f} s] " if stage else ""
        print(prefix + text, file=stream, flush=True)

    return say


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of the command that was asked for: importing costs time."""
    parser = argparse.ArgumentParser(
        prog="prunepass",
        description="Compiles vision models into smaller, faster engines, with token reduction "
        "inside the exported graph.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == asked:
            importlib.import_module(f"prunepass.commands.{name}").arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
