"""Sharing out among the layers of one block what the block keeps, by what its output loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from prunepass.analyse.projections import projections
from prunepass.analyse.sequence import between
from prunepass.errors import PlanError
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

STEP = 0.025
"""Share of the inputs of a layer as large as the stream is wide that one step takes away."""
LAST = 0.25
"""Share of the positions of a text, the last ones, on which an output is compared."""
LONGEST = 8192
"""Tokens of the longest calibration text: its attention is held in memory."""


class Layer(Protocol):
    """A layer to share out to: see `planners.sparsity.Layer`."""

    @property
    def site(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...


@dataclass
class BlockRuns:
    """What runs through the blocks of a program on calibration texts.

    Attributes:
        module: The program, opened.
        blocks: For each block its nodes, in the order they run.
        values: For each batch of texts of one length, what nodes outside gave to the blocks, and
            what layers read.
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
                local[node] = self._masked(node, args, *shares[node])
            elif node.op == "get_attr":
                local[node] = values[node]
            else:
                local[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found: Tensor = local[self.blocks[block][-1]]
        return found

    def score(self, node: Node, x: Tensor, rule: str) -> Tensor:
        """Scores of the inputs x [..., n_in] of a layer by a rule."""
        if input_rule(rule).score != "norm":
            return input_score(x, None)
        if node not in self.norms:
            self.norms[node] = column_norm(self.values[0][node.args[1]])  # type: ignore[index]
        return input_score(x, self.norms[node])

    def _masked(self, node: Node, args: Sequence[Any], rule: str, share: float) -> Tensor:
        x, weight = args[:2]
        bias = args[2] if len(args) > 2 else None
        mask = top_mask(self.score(node, x, rule), kept_inputs(x.shape[-1], share))
        return masked_linear(x, weight, bias, mask)


def record_blocks(program: ExportedProgram, texts: Sequence[Sequence[int]]) -> BlockRuns:
    """What runs through the blocks of a decoder on texts.

    Args:
        program: From `prunepass.language.capture`.
        texts: Token numbers.

    Raises:
        PlanError: There are no texts, or one is empty, too long, or holds unknown tokens.
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
    batches = checked_texts(texts, _vocabulary(program))
    values = [_Recorder(module, wanted).values(step_inputs(program, batch)) for batch in batches]
    return BlockRuns(module, blocks, values, {})


def allocate(
    runs: BlockRuns, block: int, layers: Sequence[Layer], *, keep: float, step: float = STEP
) -> dict[str, float]:
    """Site -> share of its inputs, of the layers of one block: see `giving_way`.

    Args:
        runs: From `record_blocks`.
        block: Its number.
        layers: The layers that share.
        keep: What is to stay in the mean, weighed by the sizes of the layers, in (0, 1].
        step: See `STEP`.
    """
    sizes = {layer.site: layer.inputs * layer.outputs for layer in layers}
    whole = sum(sizes.values())
    shares: dict[str, float] = {}
    for shares in giving_way(runs, block, layers, step=step):
        if sum(sizes[site] * share for site, share in shares.items()) / whole <= keep + 1e-9:
            break
    return shares


def giving_way(
    runs: BlockRuns, block: int, layers: Sequence[Layer], *, step: float = STEP
) -> Iterator[dict[str, float]]:
    """Shares of the inputs of the layers of one block, from everything to almost nothing.

    Each time the layer whose next step changes the block's output least gives way. A larger layer
    takes smaller steps, so that all steps save the same.

    Source: WINA, arXiv 2505.19427, and TEAL, arXiv 2408.14690: greedy allocation. Calibrated with
    the masks that are run (top-k), where the published code calibrates with thresholds.
    """
    nodes = projections(runs.module.graph)
    rules = {layer.site: layer.rule for layer in layers}
    width = (meta.shape(runs.blocks[block][-1]) or (0,))[-1]
    steps = {
        layer.site: min(1.0, step * int(width) ** 2 / (layer.inputs * layer.outputs))
        for layer in layers
    }
    least = {layer.site: 1.0 / layer.inputs for layer in layers}
    shares = {layer.site: 1.0 for layer in layers}
    dense = [runs.output(block, i, {}) for i in range(len(runs.values))]

    def error(trial: Mapping[str, float]) -> float:
        given = {nodes[s]: (rules[s], k) for s, k in trial.items() if k < 1.0}
        outputs = (runs.output(block, i, given) for i in range(len(dense)))
        return sum(changed(a, b) for a, b in zip(outputs, dense, strict=True))

    while True:
        yield shares
        trials = {
            s: shares | {s: max(least[s], k - steps[s])} for s, k in shares.items() if k > least[s]
        }
        if not trials:
            return
        shares = trials[min(trials, key=lambda s: error(trials[s]))]


def changed(output: Tensor, dense: Tensor) -> float:
    """How far a block's output [B, T, C] is from the dense one, on the last quarter of positions.

    The 2-norm over positions of each channel, its mean over channels, the sum over texts.
    """
    first = int(output.shape[1] * (1.0 - LAST))
    difference = (output - dense)[:, first:].double()
    return float(difference.norm(dim=1).mean(dim=1).sum())


def thresholds(
    runs: BlockRuns, layers: Sequence[Layer], shares: Mapping[str, float]
) -> dict[str, float]:
    """Site -> threshold above which a share of the scores of its inputs lies on the texts."""
    nodes = projections(runs.module.graph)
    found = {}
    for layer in layers:
        node = nodes[layer.site]
        scores = [
            runs.score(node, values[node.args[0]], layer.rule).reshape(-1)  # type: ignore[index]
            for values in runs.values
        ]
        found[layer.site] = threshold_of(torch.cat(scores).double(), shares[layer.site])
    return found


def step_inputs(program: ExportedProgram, tokens: Tensor) -> tuple[Tensor, ...]:
    """Inputs of a decoder's program for texts [B, T] with nothing before them."""
    _, _, _, dropped, past_valid, *layers = program.example_inputs[0]
    batch, length = tokens.shape
    position = torch.arange(length).expand(batch, length)
    return (
        tokens, torch.ones_like(tokens), position, torch.zeros_like(dropped),
        past_valid.new_zeros(batch, 1),
        *(x.new_zeros(batch, x.shape[1], 1, x.shape[3]) for x in layers),
    )  # fmt: skip


def checked_texts(texts: Sequence[Sequence[int]], vocabulary: int) -> list[Tensor]:
    """Texts as tensors [B, T] int64, those of one length together.

    Raises:
        PlanError: There are none, or one is empty, too long, or holds unknown tokens.
    """
    if not texts:
        raise PlanError(
            "there is nothing to calibrate on",
            found="no texts",
            fix="some 20 texts, or none at all",
        )
    found: dict[int, list[Tensor]] = {}
    for number, text in enumerate(texts):
        numbers = torch.as_tensor(text)
        what = None
        if numbers.numel() == 0:
            what = "an empty text"
        elif numbers.dim() != 1 or numbers.is_floating_point():
            what = f"{str(text)[:60]}"
        elif len(numbers) > LONGEST:
            what = f"{len(numbers)} tokens, at most {LONGEST} fit in memory"
        elif int(numbers.min()) < 0 or int(numbers.max()) >= vocabulary:
            what = f"token {int(numbers.max())}, the model knows {vocabulary}"
        if what is not None:
            raise PlanError(
                f"calibration text {number} cannot be used",
                found=what,
                fix="texts as lists of token numbers, at least one in each",
            )
        found.setdefault(len(numbers), []).append(numbers.long())
    return [torch.stack(alike) for alike in found.values()]


def _vocabulary(program: ExportedProgram) -> int:
    output = next(n for n in program.graph.nodes if n.op == "output")
    return int(output.args[0][0].meta["val"].shape[-1])


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
