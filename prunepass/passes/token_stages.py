"""Stages of a graph whose tokens are reduced: which tokens a value has, and how it comes to others.

A *stage* is the stretch between two reductions; stage 0 has all tokens. Every value with a token
axis belongs to a stage, and an operand from an earlier stage is gathered where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from prunepass.analyse.token_positions import Axes
from prunepass.graph.splice import insert_call
from prunepass.rules.live_in import compose, gather_live_in


@dataclass
class Stage:
    """What is known of the tokens between two reductions.

    Attributes:
        tokens: Their number.
        kept: [B, tokens], their positions in the stage before; None in stage 0.
        size: [B, tokens], how many original tokens each stands for; None while all count one.
        origin: Stage -> [B, tokens], their positions in that stage.
        widths: [B, T], what each token of stage 0 that is gone amounts to; None where nobody asks.
    """

    tokens: int
    kept: Node | None = None
    size: Node | None = None
    origin: dict[int, Node] = field(default_factory=dict)
    widths: Node | None = None


class Stages:
    """The stages of one walk over an opened graph, as far as it has come.

    Attributes:
        every: The stages, in graph order.
        of: Value with a token axis -> number of its stage.
        axes: Value -> its token axes.
        replaced: Value -> what takes its place behind a reduction.
    """

    def __init__(
        self, graph: Graph, axes: dict[Node, Axes], tokens: int, lifted: Callable[[Node, int], Node]
    ) -> None:
        """Stage 0.

        Args:
            graph: The opened graph.
            axes: Value -> its token axes, of all values that have any.
            tokens: Their number.
            lifted: From a value of stage 0 and a stage to where its tokens stand in that value.
        """
        self.graph, self.axes, self.lifted = graph, axes, lifted
        self.every = [Stage(tokens)]
        self.of: dict[Node, int] = {}
        self.replaced: dict[Node, Node] = {}
        self._gathered: dict[tuple[Node, int, Axes, int], Node] = {}

    @property
    def number(self) -> int:
        """Of the stage that has been reached."""
        return len(self.every) - 1

    @property
    def here(self) -> Stage:
        """The stage that has been reached."""
        return self.every[-1]

    def current(self, node: Node) -> Node:
        """The node, or what took its place."""
        return self.replaced.get(node, node)

    def at(self, node: Node) -> int:
        """The stage of a value; 0 of one that no token has been taken from."""
        return self.of.get(node, 0)

    def follow(self, node: Node, by: Node) -> None:
        """Lets `by` stand where `node` stood: the same stage, the same axes."""
        if node in self.of:
            self.of[by] = self.of[node]
            self.axes[by] = self.axes[node]

    def gather(
        self, source: Node, behind: int, stage: int, axes: Axes, rank: int, before: Node
    ) -> Node:
        """A value of an earlier stage with the tokens of a later one, made in front of a node."""
        key = (source, stage, axes, rank)
        if key not in self._gathered:
            where = self.positions(behind, stage) if behind else self.lifted(source, stage)
            self._gathered[key] = insert_call(
                self.graph, gather_live_in, (source, where), {"axes": axes, "rank": rank},
                before=before, label="reduce_tokens:live_in",
            )  # fmt: skip
        return self._gathered[key]

    def positions(self, behind: int, stage: int) -> Node:
        """[B, K]: where the tokens of a stage stood in an earlier one."""
        here = self.every[stage]
        if behind not in here.origin:
            assert here.kept is not None
            previous = self.positions(behind, stage - 1)
            here.origin[behind] = insert_call(
                self.graph, compose, (previous, here.kept), before=here.kept.next,
                label="reduce_tokens:positions",
            )  # fmt: skip
        return here.origin[behind]

    def numbers(self, node: Node, stage: int, label: str) -> Node:
        """[B, T], the numbers in the whole sequence of the tokens of a node [B, T, C]."""
        if stage:
            return self.positions(0, stage)
        return insert_call(self.graph, numbers, (node,), before=node.next, label=label)


def numbers(x: torch.Tensor) -> torch.Tensor:
    """[B, T] int64: 0, 1, 2 .. for the tokens of `x` [B, T, C]."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], x.shape[1])


def unit_sizes(x: torch.Tensor) -> torch.Tensor:
    """[B, T] ones: each token of `x` [B, T, C] stands for itself."""
    return torch.ones_like(x[:, :, 0])
