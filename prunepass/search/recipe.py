"""Recipes: how tokens go and which layers go; and the steps that bring a recipe to a cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.export import ExportedProgram
from torch.fx import GraphModule

from prunepass.analyse.blocks import Block, find_blocks
from prunepass.analyse.flops import count
from prunepass.analyse.sites import sites as find_sites
from prunepass.errors import PrunepassError
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.passes import drop_layers
from prunepass.planners.budget import fit, priced
from prunepass.planners.cost import TokenCost
from prunepass.planners.request import Request, ask, unread_step
from prunepass.plans import Step
from prunepass.records import Sites

ALMOST_ALL = 0.9999
"""A share of the MACs that takes no token that anybody reads."""


@dataclass(frozen=True)
class Recipe:
    """What is done, but for how much.

    Attributes:
        method: Name of the method that reduces tokens, None for no reduction.
        exponent: How late tokens go, None for the method's own schedule.
        dropped: Sites of layers that go, in graph order.
    """

    method: str | None = None
    exponent: float | None = None
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.method is not None:
            late = "" if self.exponent is None else f" exponent {self.exponent:g}"
            parts.append(f"{self.method}{late}")
        if self.dropped:
            parts.append("without " + ", ".join(self.dropped))
        return "; ".join(parts) or "dense"


@dataclass(frozen=True)
class _Opened:
    """A program without some layers."""

    module: GraphModule
    sites: Sites
    macs: int


class Recipes:
    """Steps of recipes on one program.

    Args:
        program: A labelled program.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.sites = program, find_sites(program)
        self.blocks: tuple[Block, ...] = find_blocks(open_module(program).graph)
        self._opened: dict[tuple[str, ...], _Opened] = {}
        self._costs: dict[tuple[str, ...], TokenCost] = {}
        self._scoring: dict[tuple[object, ...], int] = {}
        self.macs = self._open(()).macs

    def steps(self, recipe: Recipe, ratio: float) -> tuple[Step, ...]:
        """The steps that bring a recipe to a share of the dense MACs, or as near above as it gets.

        Without a method the ratio is what dropping the layers gives.

        Raises:
            PlanError: The method cannot reach the ratio.
            UnsupportedGraph: No tokens can go.
        """
        drops = tuple(Step(kind="drop_layers", site=site) for site in recipe.dropped)
        if recipe.method is None:
            return (*drops, *self._unread(recipe.dropped))
        opened = self._open(recipe.dropped)
        local = min(ALMOST_ALL, ratio * self.macs / opened.macs)
        plan = fit(
            opened.module, opened.sites, self._request(recipe), flops=local,
            cost=self._cost(recipe.dropped),
        )  # fmt: skip
        return (*drops, *plan.steps)

    def ratio(self, steps: Sequence[Step]) -> float:
        """MACs of steps over those of the dense program, scoring included."""
        dropped = tuple(s.site for s in steps if s.kind == "drop_layers")
        tokens = [s for s in steps if s.kind == "reduce_tokens"]
        opened = self._open(dropped)
        if not tokens:
            return opened.macs / self.macs
        cost = self._cost(dropped)
        return cost.macs(priced(tokens, cost.tokens, opened.sites)) / self.macs

    def tokens(self, steps: Sequence[Step]) -> float:
        """Mean over the blocks of the tokens that enter them, relative to the dense program."""
        first = next((s for s in self.sites if s.tokens), None)
        if first is None or not self.blocks:
            return 1.0
        left, total = first.tokens, 0
        cuts = {s.site: s for s in steps if s.kind == "reduce_tokens"}
        for block in self.blocks:
            total += left
            for site in self.sites:
                if site.block == block.number and site.label in cuts:
                    left = cuts[site.label].count(left, self.sites.prefix_tokens)
        return total / (first.tokens * len(self.blocks))

    def droppable(self, *, protect: tuple[int, int] = (1, 1)) -> list[str]:
        """Sites of branches, then of blocks, that may go, without the first and last blocks.

        Branches come first: a block costs what its branches cost together, at least.
        """
        first, last = protect
        inner = self.blocks[first : len(self.blocks) - last]
        parted = [block for block in inner if len(block.branches) > 1]
        branches = [branch.site for block in parted for branch in block.branches]
        return branches + [block.site for block in inner if block.obstacle is None]

    def joined(self, dropped: Sequence[str], more: str) -> tuple[str, ...] | None:
        """A set of dropped sites with one more, in graph order; None if it is in there already."""
        if more in dropped or more.split(".")[0] in dropped:
            return None
        kept = [site for site in dropped if not site.startswith(more + ".")]
        order = [x for b in self.blocks for x in (b.site, *(c.site for c in b.branches))]
        return tuple(sorted([*kept, more], key=order.index))

    def _request(self, recipe: Recipe) -> Request:
        assert recipe.method is not None
        sites = self._open(recipe.dropped).sites
        request = ask(sites, method_name=recipe.method, exponent=recipe.exponent)
        if recipe.exponent is None:
            return request
        return replace(request, method=replace(request.method, shape="depth"))

    def _cost(self, dropped: tuple[str, ...]) -> TokenCost:
        """What any reduction between attention and MLP costs, without some layers."""
        if dropped not in self._costs:
            opened = self._open(dropped)
            places = [site.label for site in opened.sites.reducible("attention")]
            unread = places.pop() if self._unread(dropped) else None
            self._costs[dropped] = TokenCost(
                opened.module, opened.sites, places, unread=unread, scoring=self._scoring
            )
        return self._costs[dropped]

    def _unread(self, dropped: tuple[str, ...]) -> tuple[Step, ...]:
        """The step that stops computing what no output reads, where there is one: it is exact."""
        opened = self._open(dropped)
        places = opened.sites.reducible("attention")
        if not opened.sites.reads_prefix_only or len(places) < 2:
            return ()
        return (unread_step(places[-1].label, opened.sites),)

    def _open(self, dropped: tuple[str, ...]) -> _Opened:
        if dropped not in self._opened:
            module = open_module(self.program)
            if dropped:
                drop_layers.edit(module, [Step(kind="drop_layers", site=s) for s in dropped])
            left = find_blocks(module.graph)
            branches = {branch.site for block in left for branch in block.branches}
            numbers = {block.number for block in left}
            items = tuple(
                site
                for site in self.sites
                if (site.label in branches) or (site.kind == "output" and site.block in numbers)
            )
            macs = count(module.graph.nodes, lambda n: meta.concrete_shape(n, 1) or ())
            self._opened[dropped] = _Opened(module, replace(self.sites, items=items), macs)
        return self._opened[dropped]


def key_of(steps: Sequence[Step]) -> str:
    """A name for steps: alike for those that do the same."""
    return json.dumps(
        [[s.kind, s.site, s.rule, s.keep, s.action, dict(s.options)] for s in steps]
    )  # fmt: skip


Cost = Callable[[Sequence[Step]], float]
"""What steps cost; falls with the MACs."""
SLACK = 0.005
"""How far above its limit a cost may lie, relatively."""


def at_most(
    recipes: Recipes, recipe: Recipe, limit: float, cost: Cost, *, guess: float
) -> tuple[tuple[Step, ...], float] | None:
    """The steps of a recipe that take least away and cost at most `limit`, and their cost.

    None where the recipe cannot be brought there.

    Args:
        recipes: Of one program.
        recipe: What is to be done.
        limit: Of the cost.
        cost: What steps cost.
        guess: The share of the MACs that is tried first.
    """
    best = None
    low, high, ratio = 0.0, 1.0, guess
    for _ in range(10):
        steps = _steps(recipes, recipe, ratio)
        price = cost(steps) if steps is not None else 0.0
        if steps is not None and price <= limit * (1 + SLACK):
            best, low = (steps, price), ratio
            if recipe.method is None or price >= limit * (1 - SLACK):
                break
        elif steps is None:
            low = ratio  # it cannot go that far down
        elif recipe.method is None:
            break
        else:
            high = ratio
        if high - low < 1e-3:
            break
        ratio = (low + high) / 2
    return best


def _steps(recipes: Recipes, recipe: Recipe, ratio: float) -> tuple[Step, ...] | None:
    try:
        return recipes.steps(recipe, ratio)
    except PrunepassError:
        return None
