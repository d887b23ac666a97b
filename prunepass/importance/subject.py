"""An opened program whose layers are scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.blocks import Block, Branch, find_blocks
from prunepass.errors import UnsupportedGraph
from prunepass.graph.edit import open_module

Sums = dict[str, Tensor]
"""Name -> float64 tensor; those of two batches add up."""


@dataclass(frozen=True)
class Subject:
    """An opened program whose layers are scored.

    Attributes:
        module: Shares its weights with the program.
        blocks: By number.
        order: Node -> its place in the graph.
        tap: `block`: cosines over the boundary of a block or branch, residual included; `module`:
            of branches between what enters them and what they add.
        prefix: Leading tokens that do not count for cosines and hidden states.
        seed: Of everything drawn.
        weights: Name -> parameter or buffer.
    """

    module: GraphModule
    blocks: tuple[Block, ...]
    order: Mapping[Node, int]
    tap: str = "block"
    prefix: int = 0
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All branches, in the order they run."""
        return tuple(branch for block in self.blocks for branch in block.branches)

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of all matrices in the blocks, each once."""
        return tuple(dict.fromkeys(name for block in self.blocks for name in block.weights))


def subject(
    program: ExportedProgram, *, tap: str = "block", prefix: int = 0, seed: int = 0
) -> Subject:
    """A labelled program, opened for scoring.

    Raises:
        UnsupportedGraph: It has no blocks.
    """
    module = open_module(program)
    blocks = find_blocks(module.graph)
    if not blocks:
        raise UnsupportedGraph(
            "this model has no layers that can be told apart",
            found="no attention block with a residual stream",
            fix="`prunepass inspect MODEL` says what was found",
        )
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    return Subject(module, blocks, order, tap, prefix, seed, weights)
