"""The rules that say which inputs of a linear layer are read, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from prunepass.errors import looked_up


@dataclass(frozen=True, kw_only=True)
class InputRule:
    """One row of the table.

    Attributes:
        name: How plans call it.
        score: What inputs are ranked by: `norm`, |x| times the column norm; `size`, |x|; `gate`,
            what the activated gate of an MLP gives, for its down projection.
        source: Paper, equation or section.
        summary: One line.
    """

    name: str
    score: Literal["norm", "size", "gate"]
    source: str
    summary: str


INPUT_RULES: Mapping[str, InputRule] = MappingProxyType(
    {
        row.name: row
        for row in (
            InputRule(
                name="weight-norm",
                score="norm",
                source="WINA, arXiv 2505.19427, equation 4",
                summary="|x| times the norm of the column that reads it",
            ),
            InputRule(
                name="magnitude",
                score="size",
                source="TEAL, arXiv 2408.14690",
                summary="|x|",
            ),
            InputRule(
                name="gate-activation",
                score="gate",
                source="CATS, COLM 2024, arXiv 2404.08763",
                summary="|activated gate|, of what a gated MLP hands down",
            ),
        )
    }
)


def input_rule(name: str) -> InputRule:
    """The row called `name`.

    Raises:
        PlanError: There is none; the known names are listed, nearest first.
    """
    return looked_up(INPUT_RULES, name, "rule of inputs")
