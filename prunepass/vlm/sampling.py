"""Choosing the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunepass.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest, larger ones draw more evenly.
        top_k: Draws from so many likeliest tokens only.
        top_p: Draws from the likeliest tokens that have that probability together.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, fix in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 for greedy, 0.7 to draw"),
            ("top_k", self.top_k is None or self.top_k >= 1, "a number of tokens, at least 1"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "a probability in (0, 1]"),
        ):
            if not good:
                raise UsageError(
                    f"{name} is out of range", found=repr(getattr(self, name)), fix=fix
                )

    def generator(self) -> torch.Generator:
        """Where the draws come from."""
        return torch.Generator().manual_seed(self.seed)

    def pick(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """One token number a row: [B] int64, of logits [B, V]."""
        if self.temperature == 0:
            return logits.argmax(dim=1)
        scaled = logits.float() / self.temperature
        ranked, order = scaled.sort(dim=1, descending=True)
        if self.top_k is not None:
            ranked[:, self.top_k :] = float("-inf")
        if self.top_p is not None:
            share = ranked.softmax(dim=1)
            # The token that crosses the bound still counts.
            ranked[share.cumsum(dim=1) - share >= self.top_p] = float("-inf")
        drawn = torch.multinomial(ranked.softmax(dim=1), 1, generator=generator)
        return order.gather(1, drawn).squeeze(1)
