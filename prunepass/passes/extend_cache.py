"""From prefill to decoding: the same language model on a few new tokens and a cache.

The cache is an input that is read where it lies; what comes out is the logits and the keys and
values of the new tokens alone, for the caller to write behind the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node

from prunepass.analyse.attention import FUSED
from prunepass.analyse.sequence import behind, hoist, ungrouped
from prunepass.analyse.sites import labelled
from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.arguments import changed_arguments
from prunepass.graph.edit import open_module, seal_with
from prunepass.graph.splice import insert_call
from prunepass.passes.bind_image_steps import PROMPT
from prunepass.passes.sequence_stages import Positions
from prunepass.rules.cached_attention import cached_attention

LONGEST = 1 << 20


def extend_cache(
    program: ExportedProgram, first_layers: Sequence[int], *, positions: Positions
) -> ExportedProgram:
    """The decoding program of a prefill program that prunes nothing.

    Its inputs: `inputs_embeds` [B, S, C] (or `input_ids` [B, S]), `attention_mask` [B, S],
    `position_ids` [B, S] (or [3, B, S]) counted in the whole prompt; `dropped` [G], by how many
    tokens each stage is shorter;
    `past_valid_g` [B, P_g] for each stage, nonzero where the cache holds a token; `past_key_l` and
    `past_value_l` [B, H, P_g, D] for each layer. Its outputs: logits [B, 1, V] of the last token,
    then the keys and values [B, H, S, D] of the new tokens for each layer.

    Args:
        program: What `LanguageModel` or a `Decoder` exports to, labelled.
        first_layers: The first layer of each stage, from 0, ascending: (0, 7, 9, 12) for a model
            whose prompts are pruned behind its layers 7, 9 and 12.
        positions: Whether tokens behind a pruning are numbered anew (`compact`).

    Raises:
        UnsupportedGraph: An attention is not the fused one.
    """
    module = open_module(program)
    graph = module.graph
    inputs = {str(n.target): n for n in graph.find_nodes(op="placeholder")}
    stream = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"]
    place, valid = inputs["position_ids"], inputs["attention_mask"]
    hoist(graph, stream)
    table = labelled(graph)
    layers = sum(label.endswith(".attention:core") for label in table)
    if not layers:
        raise UnsupportedGraph(
            "cannot give the language model a cache",
            found="no attention of it is recognised",
            fix="load the model with attn_implementation='sdpa'",
        )
    stage_of = [sum(layer >= first for first in first_layers) - 1 for layer in range(layers)]
    graph.set_codegen(torch.fx.graph.CodeGen())
    spare = _Placeholders(graph)
    dropped = spare.add("dropped")
    past_valid = [spare.add(f"past_valid_{g}") for g in range(len(first_layers))]
    examples: list[torch.Tensor] = []
    for layer in range(layers):
        core = table[f"block[{layer}].attention:core"]
        if core.target is not FUSED:
            raise UnsupportedGraph(
                f"cannot give layer {layer + 1} a cache ({meta.module_path(core)})",
                found=f"its attention is written out, ending in {core.target}",
                fix="load the model with attn_implementation='sdpa'",
            )
        examples += _attend(core, layer, past_valid[stage_of[layer]], valid, spare, stage_of[layer])
    graph.eliminate_dead_code()  # the mask of a prompt, which may be made of where images stand
    for name in PROMPT[2:]:
        if name in inputs:
            graph.erase_node(inputs[name])
    if positions == "compact" and len(first_layers) > 1:
        _renumber(graph, table, place, stream, dropped, stage_of)
    args, shapes = _examples(program, len(first_layers), examples, stage_of)
    # A module of its own: the opened one insists on the inputs it was opened with.
    return seal_with(GraphModule(module, graph), args, shapes)


class _Placeholders:
    """New inputs, behind those that are there."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.last = graph.find_nodes(op="placeholder")[-1]

    def add(self, name: str) -> Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.placeholder(name)
        return self.last


def _attend(
    core: Node, layer: int, past_valid: Node, valid: Node, spare: _Placeholders, stage: int
) -> list[torch.Tensor]:
    """Puts attention to the cache in place of one fused call; examples of its cache."""
    query, key, value = core.args[:3]
    key, value = ungrouped(key), ungrouped(value)  # type: ignore[arg-type]
    past_key, past_value = spare.add(f"past_key_{layer}"), spare.add(f"past_value_{layer}")
    new = insert_call(
        core.graph, cached_attention,
        (query, past_key, key, past_value, value, past_valid, valid),
        {"scale": core.kwargs.get("scale")}, before=core,
        label=f"block[{layer}].attention:output",
    )  # fmt: skip
    core.replace_all_uses_with(new)
    core.graph.erase_node(core)
    found = []
    for node in (key, value):
        shape = meta.concrete_shape(node, 2) or ()
        dtype = meta.value(node).dtype
        found.append(torch.zeros(2, shape[1], 5 + 2 * stage, shape[3], dtype=dtype))
    return found


def _renumber(
    graph: Graph, table: dict[str, Node], place: Node, stream: Node, dropped: Node,
    stage_of: Sequence[int],
) -> None:  # fmt: skip
    """Rotary tables of later stages are made from positions less what was dropped before."""
    after = behind(graph, stream)
    placed = behind(graph, place) - after
    # The block a node belongs to: the first one whose output stands behind it.
    ends = [table[f"block[{i}].output:output"] for i in range(len(stage_of))]
    copies: dict[tuple[int, Node], Node] = {}

    def copied(node: Node, stage: int) -> Node:
        if (stage, node) in copies:
            return copies[stage, node]
        if node is place:
            at = place.graph.find_nodes(op="placeholder")[-1].next
            new = insert_call(
                graph, renumbered, (place, dropped), {"stage": stage}, before=at, label="positions"
            )
        else:
            args, kwargs = changed_arguments(node, partial(again, stage))
            with graph.inserting_before(node.next):
                new = graph.create_node(node.op, node.target, args, kwargs)
            new.meta = {k: v for k, v in node.meta.items() if k != "custom"}
        copies[stage, node] = new
        return new

    def again(stage: int, value: Node) -> Node:
        return copied(value, stage) if value in placed else value

    block = 0
    for node in list(graph.nodes):
        stage = stage_of[min(block, len(stage_of) - 1)]
        if node in after and stage > 0 and node.op == "call_function":
            node.args, node.kwargs = changed_arguments(node, partial(again, stage))
        if block < len(ends) and node is ends[block]:
            block += 1


def renumbered(position_ids: torch.Tensor, dropped: torch.Tensor, *, stage: int) -> torch.Tensor:
    """Positions [B, S] in a stage that has `dropped[stage]` tokens fewer than the prompt."""
    return position_ids - dropped[stage]


def _examples(
    program: ExportedProgram, stages: int, past: Sequence[torch.Tensor], stage_of: Sequence[int]
) -> tuple[tuple[torch.Tensor, ...], Any]:
    stream, _, place = program.example_inputs[0][:3]
    batch, tokens = Dim("batch", min=1), Dim("tokens", min=1, max=LONGEST)
    cached = [Dim(f"cached_{g}", min=1, max=LONGEST) for g in range(stages)]
    rows = place.dim() == 3
    args = (
        stream[:2, :3].contiguous(), torch.ones(2, 3, dtype=torch.int64),
        place[..., :2, :3].contiguous(), torch.zeros(stages, dtype=torch.int64),
        *(torch.ones(2, 5 + 2 * g, dtype=torch.int64) for g in range(stages)), *past,
    )  # fmt: skip
    along = {0: batch, 1: tokens}
    shapes = (
        along, along, {1: batch, 2: tokens} if rows else along, None,
        *({0: batch, 1: cached[g]} for g in range(stages)),
        *({0: batch, 2: cached[g]} for g in stage_of for _ in "kv"),
    )  # fmt: skip
    return args, shapes
