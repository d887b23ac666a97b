"""The command line; `prunepass.commands` holds the commands."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

import prunepass
from prunepass.commands import COMMANDS
from prunepass.errors import PrunepassError
from prunepass.terminal import Say

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
        result = command.run(words, say=Say(quiet=words.quiet, json=words.json))
    except PrunepassError as error:
        print(f"{_ERROR}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_ERROR}interrupted", file=sys.stderr)
        return 130
    if words.json:
        print(json.dumps(result))
    told = getattr(command, "exit_code", None)
    return told(result) if told is not None else 0


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
            command.add_argument("--quiet", action="store_true", help="say results only")
            command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
