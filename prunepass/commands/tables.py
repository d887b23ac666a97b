"""Tables of the terminal."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH = 140
"""Characters of a line where nobody looks: in a file nothing need be folded."""


def show(columns: Sequence[str], rows: Sequence[Sequence[str]], *, aside: bool = False) -> None:
    """Prints a table; the first two columns are text, the others numbers.

    Args:
        columns: Their names.
        rows: As they are printed.
        aside: Whether it goes to standard error, as with --json.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(stderr=aside)
    if not console.is_terminal:
        console = Console(stderr=aside, width=_WIDTH)
    console.print(table)
