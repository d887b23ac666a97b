"""Which tokens stay, and what becomes of the others: what a rule that selects gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Selection(NamedTuple):
    """The split of T tokens into K kept and R dropped ones, K + R = T.

    Attributes:
        kept: [B, K] int64, token indices, strictly ascending.
        dropped: [B, R] int64, token indices, in no promised order.
        target: [B, R] int64: the index of the kept token that each dropped token joins if it is
            merged. Never a prefix token.
        weight: [B, T], > 0, or None: what each token weighs in the mean when tokens are merged;
            None weighs by size.
    """

    kept: Tensor
    dropped: Tensor
    target: Tensor
    weight: Tensor | None = None
