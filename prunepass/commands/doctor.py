"""`prunepass doctor`: what will fail, fall back or be wrong before an engine is built."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunepass.doctor.findings import Finding, examine
from prunepass.doctor.read import files, kind_of
from prunepass.doctor.target import TARGETS, default_targets

if TYPE_CHECKING:  # It brings torch along, which an ONNX file does not need.
    from prunepass.commands.request import Say


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "path", metavar="DIR|FILE", type=Path,
        help="an ONNX file, a program of torch.export (.pt2), a bundle or another folder of those",
    )  # fmt: skip
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME[==VERSION]",
        help=f"what it is to run on, several times for several: {', '.join(TARGETS)}; without a "
        "version what is installed, else the newest known",
    )  # fmt: skip


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Examines a file or a folder; told of in the result, see `exit_code`."""
    targets = words.target or _usual(words.path)
    found = examine(words.path, targets=targets)
    counts = Counter(finding.effect for finding in found)
    result = {
        "path": str(words.path),
        "targets": targets,
        "blocking": sum(finding.blocking for finding in found),
        "counts": dict(counts),
        "findings": [finding.to_dict() for finding in found],
    }
    if words.json:
        return result
    if not found:
        say(f"{words.path}: nothing to tell, for {', '.join(targets)}")
        return result
    if sys.stdout.isatty():
        _table(found)
    else:
        for line in _lines(found):
            say(line)
    told = ", ".join(f"{number} x {effect}" for effect, number in counts.items())
    say(f"{words.path}: {told}")
    return result


def exit_code(result: dict[str, Any]) -> int:
    """1 where something would fail, or be wrong without a word."""
    return 1 if result["blocking"] else 0


def _usual(path: Path) -> list[str]:
    """The targets of the files at a path where nobody names one."""
    kinds = dict.fromkeys(kind_of(file) for file in files(path))
    return [str(target) for kind in kinds for target in default_targets(kind)]


def _alike(found: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that differ in their node alone as one, with the nodes."""
    groups: dict[tuple[str, ...], tuple[Finding, list[str]]] = {}
    for one in found:
        key = (one.file, one.target, one.rule)
        groups.setdefault(key, (one, []))[1].append(one.node)
    return list(groups.values())


def _nodes(one: Finding, names: Sequence[str]) -> str:
    where = f" in {one.module}" if one.module else ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{where}{more}"


def _file(one: Finding, found: Sequence[Finding]) -> str:
    """The file's name where there are several."""
    return one.file if len({f.file for f in found}) > 1 else ""


def _lines(found: Sequence[Finding]) -> list[str]:
    lines = []
    for one, names in _alike(found):
        file = _file(one, found)
        lines += [
            f"{one.target} {one.effect}: {_nodes(one, names)}" + (f" of {file}" if file else ""),
            f"  found: {one.found}; {one.what}",
            f"  try:   {one.mend}",
        ]
    return lines


def _table(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("target", "what", "node", "why", "what to do"):
        table.add_column(column, overflow="fold")
    colours = {"fails": "bold red", "wrong": "bold magenta", "falls back": "yellow"}
    for one, names in _alike(found):
        file = _file(one, found)
        table.add_row(
            one.target, one.effect, _nodes(one, names) + (f"\n{file}" if file else ""),
            f"{one.found}; {one.what}", one.mend, style=colours.get(one.effect, ""),
        )  # fmt: skip
    Console().print(table)
