"""Which linear layers gain from reading fewer inputs, as far as that was measured.

This is the one place that knows: passes carry out what is planned, whatever the size of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from prunepass.errors import UnsupportedGraph
from prunepass.planners.block_runs import Layer

SMALLEST = 1 << 20
"""Numbers of a weight below which a layer stays dense unless asked otherwise.

Why `pays` does not do alone: it reckons with the share a layer reads, and who shares out what a
block keeps, or that a model has nobody to, must be known before there are shares. And no smaller
layer is among the results that it is held against, while it would let layers of little more than an
eighth of these numbers read fewer inputs.
"""


@dataclass(frozen=True)
class Overhead:
    """What a sparse product takes besides reading, in bytes of weight that can be read meanwhile.

    Attributes:
        fixed: At all.
        search: To find out for one input whether it stays.
    """

    fixed: int
    search: int


OVERHEADS: Mapping[str, Overhead] = MappingProxyType(
    {
        # From `scripts/bench_sparse --linear --shape ...`.
        "cpu": Overhead(1 << 19, 1000),
        # Reckoned and not measured: some four microseconds of a GPU that reads 4 TB a second, so
        # that a layer is left dense rather than made slower. `scripts/bench_gpu` measures it.
        "cuda": Overhead(1 << 24, 500),
    }
)

ROWS = 0.75
"""Share of the weight that all rows together may read and still gain: a dense product reads it once
for all of them, a little faster than rows here and there."""


def large_enough(layers: Sequence[Layer], smallest: int) -> list[Layer]:
    """The layers that may read fewer inputs, whatever their share.

    Args:
        layers: One at least.
        smallest: Numbers of a weight below which a layer stays dense, 0 for none.

    Raises:
        UnsupportedGraph: There are none.
    """
    found = [layer for layer in layers if layer.numbers >= smallest]
    if not found:
        raise UnsupportedGraph(
            "no linear layer of this model gains from reading fewer inputs",
            found=f"the largest weight has {max(layer.numbers for layer in layers)} numbers, "
            f"{smallest} is the least that gains",
            fix="a larger model, or smallest=0 (--smallest 0) for the sake of trying",
        )
    return found


def pays(layer: Layer, keep: float, *, width: int, device: str = "cpu") -> bool:
    """Whether a layer is faster where it reads a share of its inputs.

    Args:
        layer: The layer.
        keep: The share, in (0, 1].
        width: Bytes of a number of its weight.
        device: Where it is run, one of `OVERHEADS`.
    """
    besides = OVERHEADS[device]
    return (1.0 - keep) * layer.numbers * width >= besides.fixed + besides.search * layer.inputs


def rows_that_gain(keep: float) -> int:
    """Tokens at once, >= 1, up to which a sparse product reads less than a dense one.

    Args:
        keep: Share of the inputs that each of them reads, in (0, 1].
    """
    return max(1, int(ROWS / keep))
