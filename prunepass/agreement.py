"""Whether two computations of the same thing say the same: how far apart, and how far is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SINGLE = (torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The largest relative difference that is right, by precision.

    Attributes:
        single: Of what is said in float32 or float64.
        half: Of what is said in fewer bits.
    """

    single: float
    half: float

    def of(self, told: Sequence[Tensor]) -> float:
        """The limit for outputs: that of half precision if one of them has it."""
        fewer = any(x.is_floating_point() and x.dtype not in _SINGLE for x in told)
        return self.half if fewer else self.single


ENGINE = Limit(single=1e-4, half=2e-2)
"""An engine and its program: the same sums, added up in another order."""
DECODER_ENGINE = Limit(single=1e-4, half=1e-1)
"""The same for a language model, whose outputs are logits and the small keys of each layer."""
CAPTURED = Limit(single=1e-4, half=5e-2)
"""Logits of a captured decoder and of its model, which reads the whole text at once."""
TAKEN_APART = Limit(single=1e-3, half=5e-2)
"""Logits of the parts of a vision-language model, put together again, and of the model."""


def difference(found: Tensor, told: Tensor) -> float:
    """The largest difference, relative to the largest number that was told.

    Infinite where shapes differ or a number is none.
    """
    return largest_difference([found], [told])


def largest_difference(found: Sequence[Tensor], told: Sequence[Tensor]) -> float:
    """The largest of the differences between outputs; infinite where there are more or fewer."""
    return float(differences_by_example(found, told, examples=1)[0])


def differences_by_example(
    found: Sequence[Tensor], told: Sequence[Tensor], *, examples: int
) -> Tensor:
    """[B] float64: for each example the largest of its differences.

    Args:
        found: What is judged.
        told: What is right, each [B, ...]; one without an axis of examples counts for all of them.
        examples: How many examples there are, B.
    """
    infinite = torch.full((examples,), float("inf"), dtype=torch.float64)
    if [x.shape for x in found] != [x.shape for x in told]:
        return infinite
    worst = torch.zeros_like(infinite)
    for got, want in zip(found, told, strict=True):
        if not want.numel():
            continue
        got, want = got.detach().cpu().double(), want.detach().cpu().double()
        gap = (got - want).abs() / want.abs().max().clamp_min(1e-12)
        by_example = want.dim() > 0 and len(want) == examples
        gap = gap.reshape(examples, -1).amax(1) if by_example else gap.max()
        worst = torch.maximum(worst, gap)
    return torch.where(worst.isnan(), infinite, worst)


def random_inputs(
    examples: Sequence[Tensor], *, seed: int, batch: int | None = None
) -> tuple[Tensor, ...]:
    """Normal random numbers in the place of example inputs; whole numbers stay as they are.

    Args:
        examples: Each [B, ...].
        seed: Of the random numbers.
        batch: Another number of examples, None for as many as there are.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for x in examples:
        shape = x.shape if batch is None else torch.Size((batch, *x.shape[1:]))
        if x.is_floating_point():
            made.append(torch.randn(shape, generator=generator).to(x.dtype))
        else:
            made.append(x if batch is None else x[:1].expand(shape).contiguous())
    return tuple(made)
