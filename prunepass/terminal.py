"""What a command says: tables and bars at a terminal, plain text everywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from prunepass.progress import bar


class Say:
    """Where the words of one command go.

    Args:
        quiet: Says results only: no stages, no bars; with `json` nothing.
        json: Standard output is for one JSON object; what is for people goes to standard error.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json
        self._start = time.perf_counter()

    def __call__(self, text: str, *, stage: bool = False) -> None:
        """Prints a line; a stage of the work comes with the seconds since the start."""
        if self.quiet and (stage or self.json):
            return
        prefix = f"[{time.perf_counter() - self._start:6.1f} s] " if stage else ""
        print(prefix + text, file=self._stream, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table; numbers stand on the right."""
        if self.quiet and self.json:
            return
        right = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
        if self._stream.isatty():
            _drawn(columns, rows, right, self._stream)
        else:
            for line in plain(columns, rows, right):
                print(line, file=self._stream)
            self._stream.flush()

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A progress bar with the time that is left; what it yields is told what more is done."""
        if self.quiet:
            yield lambda count: None
            return
        with bar(title, total) as advance:
            yield advance

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self.json else sys.stdout


def plain(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]
) -> list[str]:
    """A table as lines of text that no width of a terminal breaks."""
    every = [columns, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if side else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in every
    ]


def _drawn(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], stream: TextIO
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, side in zip(columns, right, strict=True):
        table.add_column(column, justify="right" if side else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # block[3] is no markup
    Console(file=stream).print(table)


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number, with a unit or a sign."""
    return cell == "" or cell.lstrip("+-")[:1].isdigit()
