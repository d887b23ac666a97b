"""Where each token of the input has gone, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunepass.errors import InternalError

GONE = -1


@dataclass(frozen=True)
class Stage:
    """The tokens behind one reduction.

    Attributes:
        site: Where it is, e.g. `block[3].attention`.
        before: Tokens that arrive.
        after: Tokens that stay.
        owner: [T] int64: for each token of the input the number of the token, among those that are
            left, that stands for it; -1 where none does.
    """

    site: str
    before: int
    after: int
    owner: Tensor

    @property
    def merges(self) -> bool:
        """Whether a token stands for more than itself."""
        left = self.owner[self.owner >= 0]
        return len(left) > len(left.unique())


def stages(
    told: Mapping[str, Tensor], tokens: Mapping[str, tuple[int, int]], *, image: int = 0
) -> list[Stage]:
    """The stages of one picture, in the order they run.

    Args:
        told: `SITE:reduce.kept` -> [B, K], and `.dropped`, `.target` -> [B, R] where tokens merge:
            numbers among the tokens that arrive at the site.
        tokens: Site -> tokens before and after, in the order they run.
        image: Which picture of the batch.

    Raises:
        InternalError: What was told does not fit the number of tokens.
    """
    found: list[Stage] = []
    owner: Tensor | None = None
    for site, (before, after) in tokens.items():
        if f"{site}:reduce.kept" not in told:
            continue
        owner = torch.arange(before) if owner is None else owner
        kept = told[f"{site}:reduce.kept"][image]
        if len(kept) != after or int(owner.max()) >= before:
            raise InternalError(
                f"the engine tells other tokens at {site} than its report",
                found=f"{len(kept)} tokens, {after} are reported",
            )
        owner = follow(
            owner,
            before,
            kept,
            *(told[name][image] for name in _merged(site) if name in told),
        )
        found.append(Stage(site, before, after, owner))
    return found


def _merged(site: str) -> Sequence[str]:
    return f"{site}:reduce.dropped", f"{site}:reduce.target"


def follow(
    owner: Tensor,
    before: int,
    kept: Tensor,
    dropped: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """[T]: who stands for each token of the input, one reduction later.

    Args:
        owner: [T] int64, who stood for it before it, -1 for nobody.
        before: Tokens that arrive.
        kept: [K] int64, numbers of those that stay.
        dropped: [R] int64, numbers of those that are merged; None where they are dropped.
        target: [R] int64, the number of the kept token that each joins.
    """
    place = torch.full((before + 1,), GONE)  # the last entry is for those that are gone already
    place[kept] = torch.arange(len(kept))
    if dropped is not None and target is not None:
        place[dropped] = place[target]
    return place[owner]
