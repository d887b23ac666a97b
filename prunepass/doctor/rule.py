"""What a rule is: data, and one small function that looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet

from prunepass.doctor.target import Target
from prunepass.doctor.view import Node, View

Effect = Literal["fails", "wrong", "falls back", "slow", "untested"]
"""What becomes of a node: it stops the build; it gives something else without a word; it runs by a
longer way; it runs, slowly; nobody promises anything."""
BLOCKING: tuple[Effect, ...] = ("fails", "wrong")
"""Effects that nobody wants to build on."""


@dataclass(frozen=True)
class Place:
    """Where a rule looks."""

    node: Node
    view: View
    target: Target


Condition = Callable[[Place], str | None]
"""What was found at a place that a rule is about; None where all is well."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A trap.

    Attributes:
        name: Its name, unique.
        target: Whose trap it is.
        versions: In which versions, as pip writes them: `<10`, `>=10,<10.9`, nothing for all.
        operators: At which operators; `("*",)` for all of them, none for the file as a whole.
        condition: Tells what was found there, None where there is nothing.
        effect: What becomes of it.
        what: That in words.
        mend: What to do.
        source: Where this is known from.
    """

    name: str
    target: str
    versions: str = ""
    operators: tuple[str, ...]
    condition: Condition
    effect: Effect
    what: str
    mend: str
    source: str

    def holds(self, target: Target) -> bool:
        """Whether it is about this target."""
        return self.target == target.name and SpecifierSet(self.versions).contains(
            target.judged, prereleases=True
        )
