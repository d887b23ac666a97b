"""The exceptions prunepass raises, drawn as a tree.

PrunepassError
├── UsageError         the call or the command line is wrong                 exit code 2
├── ModelError         a model, its weights or its pictures cannot be read   exit code 1
├── CaptureError       torch.export could not capture the model              exit code 1
├── PlanError          a plan is malformed or made for another model         exit code 1
├── UnsupportedGraph   the graph does not allow what a plan asks             exit code 1
├── BackendError       a backend is missing or failed                        exit code 3
└── InternalError      a defect of prunepass                                 exit code 1
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import TypeVar

Row = TypeVar("Row")


class PrunepassError(Exception):
    """What could not be done, what was found, and a step that works.

    Args:
        what: What could not be done and where, one line.
        found: The value or shape that was seen.
        fix: A step that works instead.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: str | None = None, fix: str | None = None) -> None:
        self.what, self.found, self.fix = what, found, fix
        lines = [what]
        if found:
            lines.append(f"  found: {found}")
        if fix:
            lines.append(f"  try:   {fix}")
        super().__init__("\n".join(lines))


class UsageError(PrunepassError):
    """The call or the command line is wrong."""

    exit_code = 2


class ModelError(PrunepassError):
    """A model, its weights or its pictures cannot be read."""


class CaptureError(PrunepassError):
    """torch.export could not capture the model."""


class PlanError(PrunepassError):
    """A plan is malformed, or was made for another model."""


class UnsupportedGraph(PrunepassError):
    """The graph does not allow what a plan asks for."""


class BackendError(PrunepassError):
    """A backend is missing, or failed."""

    exit_code = 3


class InternalError(PrunepassError):
    """A defect of prunepass, not of the caller's model."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names as one line, those most like `name` first, or that begin most like it."""

    def likeness(other: str) -> float:
        same = functools.partial(difflib.SequenceMatcher, None, name)
        return max(same(other).ratio(), 0.95 * same(other[: len(name)]).ratio())

    return ", ".join(sorted(sorted(known), key=likeness, reverse=True))


def looked_up(
    table: Mapping[str, Row], name: str, what: str, error: type[PrunepassError] = PlanError
) -> Row:
    """The row of a table called `name`.

    Args:
        table: Name -> row.
        name: The name asked for.
        what: What its rows are, e.g. `rule`.
        error: What is raised where there is none; the known names are listed, nearest first.
    """
    if name not in table:
        raise error(
            f"there is no {what} called {name!r}",
            found=f"{what.split()[0]} {name!r}",
            fix=f"one of {nearest(name, table)}",
        )
    return table[name]


def first_line(error: BaseException, *, most: int = 300) -> str:
    """The first line of what an error of a library says, or its kind where it says nothing.

    Args:
        error: The error.
        most: Letters of it.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
