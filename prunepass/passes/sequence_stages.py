"""Stretches of a decoder between two prunings, and bringing a value of one into another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.fx import Graph, Node

from prunepass.analyse.sequence import Sequence as TokenSequence
from prunepass.analyse.token_positions import Axes
from prunepass.graph import meta
from prunepass.graph.arguments import changed_arguments
from prunepass.graph.splice import insert_call
from prunepass.rules.live_in import compose, gather_live_in

Positions = Literal["keep_original", "compact"]
POSITIONS: tuple[Positions, ...] = ("keep_original", "compact")
"""What becomes of the positions of tokens that stay: they keep theirs, or are numbered anew."""


@dataclass(eq=False)
class Stage:
    """The tokens between two prunings, or the few rows of them that a score is asked of.

    Attributes:
        hidden: [B, T, C]: what enters it.
        parent: The stage before, None for the whole sequence.
        kept: [B, T], their positions in the parent.
        rows: Whether these are rows of the parent, at positions that the parent gave them.
    """

    hidden: Node
    parent: Stage | None = None
    kept: Node | None = None
    rows: bool = False
    _origin: Node | None = field(default=None, repr=False)
    _length: Node | None = field(default=None, repr=False)


class Lift:
    """Puts values of the whole sequence, or of an earlier stage, in terms of a later stage.

    Args:
        graph: Of an opened program.
        sequence: Which values run along it.
        root: The stage of the whole sequence.
        placed: Nodes that positions are made into, such as rotary tables.
        positions: What becomes of those.
    """

    def __init__(
        self,
        graph: Graph,
        sequence: TokenSequence,
        root: Stage,
        *,
        placed: set[Node],
        positions: Positions,
    ) -> None:
        self.graph, self.sequence, self.root = graph, sequence, root
        self.placed, self.positions = placed, positions
        self.stage_of: dict[Node, Stage] = {}
        self.replaced: dict[Node, Node] = {}
        self.made: dict[Node, Axes] = {}
        self._ranks: dict[Node, int] = {}
        self._done: dict[tuple[Node, Stage, Axes, int], Node] = {}

    def arguments(
        self, node: Node, stage: Stage, mapping: Mapping[Node, Node], before: Node
    ) -> tuple[Any, Any]:
        """args and kwargs of a node with every operand brought to a stage.

        Args:
            node: Any node.
            stage: Where it shall be computed.
            mapping: Operands that are to be taken as they stand here.
            before: Where new nodes go.
        """
        rank = len(meta.shape(node) or ())

        def change(value: Node) -> Node:
            if value in mapping:
                return mapping[value]
            return self.operand(value, stage, rank=rank, before=before)

        return changed_arguments(node, change)

    def operand(self, value: Node, stage: Stage, *, rank: int, before: Node) -> Node:
        """One operand at a stage."""
        value = self.replaced.get(value, value)
        behind = self.stage_of.get(value, self.root)
        if behind is stage:
            return value
        if value not in self.made and self.sequence.is_length(value):
            return self.length(stage, before)
        axes = self.made[value] if value in self.made else self.sequence.axes(value)
        if not axes:
            return value
        return self._bring(value, behind, stage, axes, rank, before)

    def length(self, stage: Stage, before: Node) -> Node:
        """How many tokens a stage has, as a node."""
        if stage._length is None:
            at = stage.hidden.next
            stage._length = insert_call(
                self.graph, length_of, (stage.hidden,), before=at, label="sequence:length"
            )
        return stage._length

    def origin(self, stage: Stage) -> Node:
        """[B, T]: where the tokens of a stage stood in the whole sequence."""
        assert stage.parent is not None
        assert stage.kept is not None
        if stage.parent is self.root:
            return stage.kept
        if stage._origin is None:
            previous = self.origin(stage.parent)
            stage._origin = insert_call(
                self.graph, compose, (previous, stage.kept), before=stage.kept.next,
                label="sequence:positions",
            )  # fmt: skip
        return stage._origin

    def _bring(
        self, value: Node, behind: Stage, stage: Stage, axes: Axes, rank: int, before: Node
    ) -> Node:
        if stage is behind:
            return value
        key = (value, stage, axes, rank)
        if key in self._done:
            return self._done[key]
        assert stage.parent is not None
        if value in self.placed and self.positions == "compact" and not stage.rows:
            made = insert_call(
                self.graph, first_entries, (value, self.length(stage, before)),
                {"axes": axes}, before=before, label="sequence:live_in",
            )  # fmt: skip
            # It lacks the axes that broadcasting adds, which the operation adds by itself.
        elif stage.rows or behind is not self.root:
            parent = self._bring(value, behind, stage.parent, axes, rank, before)
            if parent is not value:  # it has all axes of the operation by now
                axes = self.made[parent]
            made = self._gather(parent, stage.kept, axes, rank, before)
            axes = self._shifted(parent, axes, rank)
        else:
            made = self._gather(value, self.origin(stage), axes, rank, before)
            axes = self._shifted(value, axes, rank)
        self.stage_of[made], self.made[made] = stage, axes
        self._ranks[made] = self._rank(value) if made.target is first_entries else rank
        self._done[key] = made
        return made

    def _gather(self, value: Node, index: Any, axes: Axes, rank: int, before: Node) -> Node:
        return insert_call(
            self.graph, gather_live_in, (value, index), {"axes": axes, "rank": rank},
            before=before, label="sequence:live_in",
        )  # fmt: skip

    def _shifted(self, value: Node, axes: Axes, rank: int) -> Axes:
        return tuple((axis + rank - self._rank(value), offset) for axis, offset in axes)

    def _rank(self, value: Node) -> int:
        return self._ranks.get(value, len(meta.shape(value) or ()))


def length_of(hidden: Tensor) -> int:
    """T of [B, T, C]."""
    return hidden.shape[1]


def first_entries(x: Tensor, length: int, *, axes: Sequence[tuple[int, int]]) -> Tensor:
    """`x` with only the first `length` entries on each of the axes."""
    for axis, _ in axes:
        x = x.narrow(axis, 0, length)
    return x
