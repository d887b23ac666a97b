"""Blocks of a decoder run one by one on calibration inputs, their layers reading fewer of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from prunepass.analyse.projections import activated_gate, projections, role_of
from prunepass.analyse.sequence import between
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.rules.input_table import input_rule
from prunepass.rules.weight_aware import (
    column_norm,
    input_score,
    kept_inputs,
    masked_linear,
    threshold_of,
    top_mask,
)


@dataclass(frozen=True)
class Layer:
    """A linear layer that may read fewer inputs.

    Attributes:
        site: Its address.
        rule: What its inputs are ranked by.
        inputs, outputs: Of its weight.
    """

    site: str
    rule: str
    inputs: int
    outputs: int

    @property
    def role(self) -> str:
        """`k` of `block[3].attention.k`."""
        return role_of(self.site)

    @property
    def numbers(self) -> int:
        """How many its weight has."""
        return self.inputs * self.outputs


@dataclass
class BlockRuns:
    """What runs through the blocks of a program on calibration texts.

    Attributes:
        module: The program, opened.
        blocks: For each block its nodes, in the order they run.
        values: For each batch, what nodes outside gave to the blocks, and what layers read.
        norms: Column norms by layer, filled as they are asked for.
    """

    module: GraphModule
    blocks: list[list[Node]]
    values: list[dict[Node, Any]]
    norms: dict[Node, Tensor]

    @torch.no_grad()
    def output(self, block: int, batch: int, shares: Mapping[Node, tuple[str, float]]) -> Tensor:
        """The output [B, T, C] of a block for a batch where layers read a share of their inputs.

        Args:
            block: Its number.
            batch: Number of the batch.
            shares: Layer -> (name of its rule, share of its inputs).
        """
        values = self.values[batch]
        local: dict[Node, Any] = {}

        def value(node: Node) -> Any:
            return local[node] if node in local else values[node]

        for node in self.blocks[block]:
            args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), value)
            if node in shares:
                rule, share = shares[node]
                ranked = value(ranked_by(node, rule))
                local[node] = self._masked(node, args, ranked, rule, share)
            elif node.op == "get_attr":
                local[node] = values[node]
            else:
                local[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found: Tensor = local[self.blocks[block][-1]]
        return found

    def score(self, node: Node, x: Tensor, rule: str) -> Tensor:
        """Scores [..., n_in] of the inputs of a layer by a rule; x is what `ranked_by` tells."""
        if input_rule(rule).score != "norm":
            return input_score(x, None)
        if node not in self.norms:
            self.norms[node] = column_norm(self.values[0][node.args[1]])  # type: ignore[index]
        return input_score(x, self.norms[node])

    def _masked(
        self, node: Node, args: Sequence[Any], ranked: Tensor, rule: str, share: float
    ) -> Tensor:
        x, weight = args[:2]
        bias = args[2] if len(args) > 2 else None
        mask = top_mask(self.score(node, ranked, rule), kept_inputs(x.shape[-1], share))
        return masked_linear(x, weight, bias, mask)


def ranked_by(node: Node, rule: str) -> Node:
    """What gives the scores of the inputs of a layer: the activated gate, or the inputs."""
    gate = activated_gate(node) if input_rule(rule).score == "gate" else None
    found: Node = node.args[0] if gate is None else gate  # type: ignore[assignment]
    return found


def record_blocks(program: ExportedProgram, batches: Sequence[tuple[Tensor, ...]]) -> BlockRuns:
    """What runs through the blocks of a decoder.

    Args:
        program: Its projections labelled, see `prunepass.language.capture`.
        batches: Inputs of the program, see `decoder_texts.text_inputs` for those of texts.
    """
    module = open_module(program)
    graph = module.graph
    table = meta.labelled(graph)
    count = sum(label.endswith("].output:output") for label in table)
    blocks = []
    for number in range(count):
        start = table[f"block[{number}].attention:input"]
        blocks.append(between(graph, start, [table[f"block[{number}].output:output"]]))
    wanted = {n for nodes in blocks for node in nodes for n in node.all_input_nodes}
    wanted |= {node.args[0] for node in projections(graph).values()}  # type: ignore[misc]
    values = [_Recorder(module, wanted).values(batch) for batch in batches]
    return BlockRuns(module, blocks, values, {})


def thresholds(
    runs: BlockRuns, layers: Sequence[Layer], shares: Mapping[str, float]
) -> dict[str, float]:
    """Site -> threshold above which a share of the scores of its inputs lies on the texts."""
    nodes = projections(runs.module.graph)
    found = {}
    for layer in layers:
        node = nodes[layer.site]
        scores = [
            runs.score(node, values[ranked_by(node, layer.rule)], layer.rule).reshape(-1)
            for values in runs.values
        ]
        found[layer.site] = threshold_of(torch.cat(scores).double(), shares[layer.site])
    return found


class _Recorder(Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, module: GraphModule, wanted: set[Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.kept: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = found
        return found

    def values(self, inputs: tuple[Tensor, ...]) -> dict[Node, Any]:
        """Values of the wanted nodes for some inputs."""
        with torch.no_grad():
            self.run(*inputs)
        return self.kept
