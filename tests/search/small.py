"""A small ViT that planners are tried on, and machines whose engines are not built but reckoned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunepass.plans import Step
from prunepass.search.engines import Timed
from prunepass.search.recipe import Recipes
from tests.planners.plain_vit import PlainVit

SIZE = {"depth": 4, "grid": 6, "patch": 4, "channels": 24, "heads": 2, "classes": 7}
TOKENS = SIZE["grid"] ** 2 + 1
DENSE_MS = 20.0


def small_vit(*, useless: int | None = None) -> PlainVit:
    """4 blocks, 37 tokens; the block `useless` adds next to nothing."""
    made = PlainVit(**SIZE)
    made.head.weight.mul_(40.0)  # answers that differ from picture to picture
    if useless is not None:
        for part in (made.proj[useless], made.fc2[useless]):
            part.weight.mul_(1e-3)
            part.bias.zero_()
    return made


Share = Callable[[float, int, int], float]
"""(share of the MACs, reductions of tokens, branches dropped) -> share of the dense time."""


class ReckonedTimer:
    """A machine known by a formula; counts what it was asked.

    Args:
        recipes: Of the program.
        share: What its engines take.
    """

    def __init__(self, recipes: Recipes, share: Share) -> None:
        self.recipes, self.share = recipes, share
        self.asked: list[tuple[Step, ...]] = []

    def __call__(self, steps: Sequence[Step]) -> Timed:
        self.asked.append(tuple(steps))
        ratio = self.of(steps)
        return Timed(DENSE_MS, DENSE_MS * ratio, ratio)

    def of(self, steps: Sequence[Step]) -> float:
        """The share of the dense time that steps take."""
        if not steps:
            return 1.0
        reduced = sum(s.kind == "reduce_tokens" and s.rule != "unread" for s in steps)
        gone = sum(1 if "." in s.site else 2 for s in steps if s.kind == "drop_layers")
        return self.share(self.recipes.ratio(steps), reduced, gone)
