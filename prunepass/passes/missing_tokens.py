"""What becomes of operations that know where tokens stand, once some tokens are missing.

Scans let their states decay for longer, convolutions over a grid see zeros in the gaps, changes of
order are worked out anew for the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from prunepass.analyse.scan import Order, step_bias
from prunepass.errors import PlanError
from prunepass.graph import meta
from prunepass.graph.splice import insert_call
from prunepass.ops.selective_scan import SCAN
from prunepass.ops.token_places import GRID, LINE, REORDER, grid_convolution, line_convolution
from prunepass.passes.places import Places
from prunepass.rules.merge import gather_tokens
from prunepass.rules.token_gaps import (
    missing,
    passed,
    ranks,
    slowed,
    spread,
    step_width,
    token_at,
    way,
)

Positions = Callable[[int], Node]
"""A stage -> node of [B, K], the numbers that its tokens have in the whole sequence."""


class MissingTokens:
    """Treats one opened graph; what several operations need of a stage is worked out once.

    Args:
        graph: The graph.
        places: What is done.
        orders: Node -> which token stands where in the whole sequence.
        tokens: T, those of the whole sequence.
        fixed: Numbers of tokens that always stay.
        positions: Where the tokens of a stage stand.
        widths: A stage -> node of [B, T], what each missing token amounts to; for `decay`.
    """

    def __init__(
        self,
        graph: Graph,
        places: Places,
        orders: Mapping[Node, Order],
        *,
        tokens: int,
        fixed: Collection[int],
        positions: Positions,
        widths: Positions,
    ) -> None:
        self.graph, self.places, self.orders = graph, places, orders
        self.tokens, self.fixed = tokens, fixed
        self.positions, self.widths = positions, widths
        self._made: dict[tuple[Any, ...], Node] = {}
        self.aligned = 0
        # Looked for now: what leads to a scan changes on the way.
        self.biases = {node: step_bias(node) for node in graph.nodes if node.target is SCAN}

    def treat(self, node: Node, stage: int, left: int) -> None:
        """Changes a node to what it is for the `left` tokens of a stage, if it knows places."""
        if node.target is SCAN:
            self._align(node, stage)
        elif node.target is REORDER:
            self._reorder(node, stage, left)
        elif node.target is GRID:
            x, *rest = node.args
            _become(node, over_kept_grid, (x, self.positions(stage), *rest), tokens=self.tokens)
        elif node.target is LINE and self.places.convolution == "scatter":
            x, *rest = node.args
            _become(node, along_kept_line, (x, self._ranks(node, stage), *rest), tokens=self.tokens)

    def reads_fixed(self, node: Node, axes: Collection[tuple[int, int]]) -> bool:
        """Whether a node takes one of the fixed tokens out of its operand."""
        if node.target is not torch.ops.aten.select.int:
            return False
        axis: Any = node.args[1]
        return (axis, 0) in axes and node.args[2] in self.fixed

    def read_fixed(self, node: Node, stage: int) -> None:
        """Changes a node that takes a fixed token to take it from where it stands now."""
        source, _, number = node.args
        _become(node, token_at, (source, self.positions(stage), number))

    def lifted(self, source: Node, stage: int) -> Node:
        """[B, K] where the tokens of a stage stand in a value that has all of them."""
        order = self.orders.get(source)
        if order is None:
            return self.positions(stage)
        return self._once(("ranks", stage, order), ranks, (self.positions(stage), order))

    def widths_of(self, label: str, here: Node, *, before: Node) -> Node:
        """[B, K]: how far tokens step, on average over the scans that carry a label.

        Args:
            label: Of the scans.
            here: [B, K], numbers of the tokens that these scans see.
            before: Where to put it.

        Raises:
            PlanError: No scan carries it.
        """
        cores = [n for n in self.graph.nodes if label in meta.labels(n) and n.target is SCAN]
        if not cores:
            raise PlanError(
                "alignment 'decay' needs a scan in the block that tokens are dropped behind",
                found=f"no {label}",
                fix="alignment='decay0'",
            )
        found = []
        for core in cores:
            delta: Any = core.args[1]
            args = (delta, self.biases[core], here, self.orders.get(delta))
            found.append(insert_call(self.graph, width_in_order, args, before=before, label=label))
        return insert_call(self.graph, mean_of, (found,), before=before, label=label)

    def _align(self, node: Node, stage: int) -> None:
        if self.places.alignment == "hold":
            return
        order = self.orders.get(node)
        where = self.positions(stage)
        if self.places.alignment == "decay":
            extra = self._once(("extra", stage, order), passed, (self.widths(stage), where, order))
        else:
            extra = self._once(("extra", stage, order), missing, (where, order))
        decay = insert_call(
            self.graph, slowed, (node.args[2], extra, self.biases[node]), before=node,
            label="reduce_tokens:align",
        )  # fmt: skip
        node.args = (*node.args[:2], decay, *node.args[3:])
        self.aligned += 1

    def _reorder(self, node: Node, stage: int, left: int) -> None:
        source = node.args[0]
        before, after = self.orders.get(source), self.orders.get(node)  # type: ignore[arg-type]
        back = tuple(reversed(range(self.tokens)))
        if {before, after} == {None, back}:
            node.args = (source, list(reversed(range(left))))
            return
        index = self._once(
            ("way", stage, before, after), way, (self.positions(stage), before, after)
        )
        _become(node, gather_tokens, (source, index))

    def _ranks(self, node: Node, stage: int) -> Node:
        order = self.orders.get(node)
        return self._once(("ranks", stage, order), ranks, (self.positions(stage), order))

    def _once(self, key: tuple[Any, ...], function: Any, args: tuple[Any, ...]) -> Node:
        """A call that is made once, right behind what it is made of."""
        if key not in self._made:
            order = {n: i for i, n in enumerate(self.graph.nodes)}
            last = max((a for a in args if isinstance(a, Node)), key=lambda n: order[n])
            self._made[key] = insert_call(
                self.graph, function, args, before=last.next, label="reduce_tokens:places"
            )
        return self._made[key]


def _become(node: Node, function: Any, args: tuple[Any, ...], **more: Any) -> None:
    """Lets a node call something else: all that is known of it stays true."""
    node.target, node.args, node.kwargs = function, args, {**node.kwargs, **more}


def width_in_order(
    delta: Tensor, bias: Tensor, here: Tensor, order: Sequence[int] | None
) -> Tensor:
    """[B, K]: how far tokens step, in ascending order of their numbers."""
    width = step_width(delta, bias)
    return width if order is None else width.gather(1, way(here, order, None))


def mean_of(found: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape."""
    return torch.stack(list(found)).mean(0)


def along_kept_line(
    x: Tensor, places: Tensor, weight: Tensor, bias: Tensor | None, *, tokens: int
) -> Tensor:
    """`line_convolution` of tokens [B, K, C] at their places, with zeros between them."""
    return gather_tokens(line_convolution(spread(x, places, tokens=tokens), weight, bias), places)


def over_kept_grid(
    x: Tensor, places: Tensor, weight: Tensor, bias: Tensor | None, width: int, *, tokens: int
) -> Tensor:
    """`grid_convolution` of tokens [B, K, C] at their places, with zeros between them."""
    whole = spread(x, places, tokens=tokens)
    return gather_tokens(grid_convolution(whole, weight, bias, width), places)
