"""The methods of sparse activation by name: which layers read fewer inputs, and by which rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from prunepass.errors import UsageError, looked_up

ALL = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")
INFORMED = ("k", "gate", "qkv", "gate_up")
"""Where the published WINA weighs inputs by column norms: what it rotates to orthogonal columns."""


@dataclass(frozen=True, kw_only=True)
class InputMethod:
    """A way to read fewer inputs.

    Attributes:
        name: How the command line calls it.
        rule: Rule of the layers in `informed`.
        plain: Rule of the others.
        roles: Layers that it makes sparse.
        informed: Layers whose inputs are scored by `rule`.
        low_rank: Share of what is kept that goes into a dense low-rank part.
        summary: One line.
        source: Paper, venue.
    """

    name: str
    rule: str
    plain: str
    roles: tuple[str, ...] = ALL
    informed: tuple[str, ...] = ALL
    low_rank: float = 0.0
    summary: str
    source: str

    def rule_of(self, role: str, informed: tuple[str, ...] | None = None) -> str:
        """Name of the rule of a layer, `informed` in place of the method's own."""
        return (
            self.rule if role in (self.informed if informed is None else informed) else self.plain
        )


INPUT_METHODS: Mapping[str, InputMethod] = MappingProxyType(
    {
        m.name: m
        for m in (
            InputMethod(
                name="wina",
                rule="weight-norm",
                plain="magnitude",
                informed=INFORMED,
                summary="reads the inputs of the largest |x| times column norm (k, gate) or |x|",
                source="Chen et al., WINA, arXiv 2505.19427",
            ),
            InputMethod(
                name="teal",
                rule="magnitude",
                plain="magnitude",
                summary="reads the inputs of the largest |x|",
                source="Liu et al., TEAL, ICLR 2025, arXiv 2408.14690",
            ),
            InputMethod(
                name="cats",
                rule="gate-activation",
                plain="magnitude",
                roles=("down",),
                summary="reads what a gated MLP hands down where the activated gate is largest",
                source="Lee et al., CATS, COLM 2024, arXiv 2404.08763 (up stays whole)",
            ),
            InputMethod(
                name="r-sparse",
                rule="weight-norm",
                plain="weight-norm",
                low_rank=0.2,
                summary="as wina everywhere, with a low-rank part that all inputs go through",
                source="Zhang et al., R-Sparse, ICLR 2025, arXiv 2504.19449 (without its search)",
            ),
        )
    }
)


def input_method(name: str) -> InputMethod:
    """The method of a name.

    Raises:
        UsageError: The name is unknown.
    """
    return looked_up(INPUT_METHODS, name, "method of sparse activation", UsageError)
