"""Rotating the stream of a decoder so that layers which read it have orthogonal columns.

An RMS norm without gain gives a rotated result for a rotated stream, so a stream may be rotated if
all that read it are turned back, and all that write to it are turned along. Each part of a block
has a rotation of its own, the right singular vectors of its k or gate: the shortcuts between parts
change from one to the next by a product of their own, which costs, and is counted.

Source: WINA, arXiv 2505.19427, section on the transformation; no mean is taken off embeddings, as
the published code does, since that changes what a model with RMS norms computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from prunepass.analyse.projections import LINEAR, block_of, projections
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import open_module, seal
from prunepass.graph.simplify import drop_casts, drop_checks
from prunepass.passes.residual_stream import SIZE, WRITERS, End, Part, stream_of
from prunepass.plans import Step
from prunepass.records import PassRecord

RULE = "orthogonal-columns"


def rotate_inputs(
    program: ExportedProgram, steps: Sequence[Step]
) -> tuple[ExportedProgram, PassRecord]:
    """The program with its stream rotated part by part; it computes what it did.

    Args:
        program: A decoder of RMS norms and linear layers, see `language.capture`.
        steps: One for each part of each block, at the layer it is made from: `block[3].attention.k`
            (or qkv), `block[3].mlp.gate` (or gate_up, up).

    Raises:
        PlanError: Steps lack a part, or name an unknown site or rule.
        UnsupportedGraph: The stream is read or written by something else than RMS norms and linear
            layers.
    """
    module = open_module(program)
    drop_casts(module.graph)
    drop_checks(module.graph)
    stream = stream_of(module.graph, _pivots(module.graph, steps))
    turns = [_turn_of(module, part) for part in stream.parts]
    turns.append(turns[-1])  # the last part writes, and the head reads, in the basis of that part
    ends: list[Part | End] = [*stream.parts, stream.end]
    for end, turn in zip(ends, turns, strict=True):
        _turn_readers(module, end, turn)
    _turn_start(module, stream.start, turns[0])
    for part, (turn, following) in zip(stream.parts, itertools.pairwise(turns), strict=True):
        _turn_writer(module, part.writer, following)
        if following is not turn:
            _turn_shortcut(module, part, turn.T @ following)
    sites = tuple(part.site for part in stream.parts)
    return seal(module, program), PassRecord("rotate_inputs", sites)


def _pivots(graph: Graph, steps: Sequence[Step]) -> dict[str, Node]:
    """Site of each part of each block, in the order they run -> the layer it is turned by."""
    sites = projections(graph)
    asked = {}
    for step in steps:
        if step.rule != RULE or step.site not in sites:
            raise PlanError(
                f"the stream cannot be rotated by {step.site!r}",
                found=f"rule {step.rule!r}" if step.rule != RULE else f"{len(sites)} known layers",
                fix=f"rule {RULE!r} at block[0].attention.k, block[0].mlp.gate and so on",
            )
        asked[step.site.rpartition(".")[0]] = sites[step.site]
    count = 1 + max((block_of(site) for site in sites), default=-1)
    wanted = [f"block[{i}].{part}" for i in range(count) for part in WRITERS]
    if sorted(asked) != sorted(wanted):
        missing = sorted(set(wanted) ^ set(asked))
        raise PlanError(
            "a stream is rotated in all of its parts or in none",
            found=f"no step for {missing[0]}" if missing else "no steps",
            fix="one step for each attention and each MLP",
        )
    return {site: asked[site] for site in wanted}


def _turn_of(module: GraphModule, part: Part) -> Tensor:
    """Q [C, C] float64: W diag(gain) Q of the pivot has orthogonal columns."""
    weight = _tensor(module, part.pivot.args[1]).double()
    gain = _tensor(module, part.norm.gain).double()
    return torch.linalg.svd(weight * gain, full_matrices=True).Vh.T.contiguous()


def _turn_readers(module: GraphModule, end: Part | End, turn: Tensor) -> None:
    """W diag(gain) Q for the layers behind a norm, which loses its gain."""
    gain = _tensor(module, end.norm.gain).double()
    for reader in end.readers:
        weight = _own(module, reader, index=1).double()
        _store(module, reader, 1, (weight * gain) @ turn)
    end.norm.output.replace_all_uses_with(end.norm.bare)


def _turn_writer(module: GraphModule, layer: Node, turn: Tensor) -> None:
    """Q^T W and Q^T b for a layer that writes to the stream."""
    _store(module, layer, 1, turn.T @ _own(module, layer, index=1).double())
    if len(layer.args) > 2 and layer.args[2] is not None:
        _store(module, layer, 2, turn.T @ _own(module, layer, index=2).double())


def _turn_start(module: GraphModule, start: Node, turn: Tensor) -> None:
    """Rotates where the stream comes from: the embedding table, a copy of it where it is tied.

    Embeddings that come from outside are rotated as they come in.
    """
    if start.target is torch.ops.aten.embedding.default:
        table = _own(module, start, index=0).double()
        _store(module, start, 0, table @ turn)
        return
    users = [user for user in start.users if user.target is not SIZE]
    _insert_product(module, start, turn, "stream_turn", users=users)


def _turn_shortcut(module: GraphModule, part: Part, change: Tensor) -> None:
    """Rotates what a part's output is added to into the next basis."""
    name = part.site.replace("[", "_").replace("]", "").replace(".", "_")
    stream = next(n for n in part.addition.all_input_nodes if n is not part.writer)
    _insert_product(module, stream, change, f"turn_{name}", users=[part.addition])


def _insert_product(
    module: GraphModule, source: Node, turn: Tensor, name: str, *, users: list[Node]
) -> None:
    """Lets users read source Q instead of source."""
    value = meta.value(source)
    module.register_buffer(name, turn.T.contiguous().to(value.dtype))
    with module.graph.inserting_before(users[0]):
        place = module.graph.get_attr(name)
        product = module.graph.call_function(LINEAR, (source, place))
    product.meta["val"] = value
    for user in users:
        user.replace_input_with(source, product)


def _tensor(module: GraphModule, node: Any) -> Tensor:
    if not isinstance(node, Node) or node.op != "get_attr":
        raise UnsupportedGraph(
            "cannot rotate a weight that is computed", found=str(node), fix="rotate=False"
        )
    owner, _, leaf = str(node.target).rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), leaf)
    return found.detach()


def _own(module: GraphModule, layer: Node, *, index: int) -> Tensor:
    """The tensor a layer reads as an argument, made its own where others read it, too."""
    node = layer.args[index]
    value = _tensor(module, node)
    assert isinstance(node, Node)
    others = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == node.target]
    if len(others) > 1 or len(node.users) > 1:
        name = f"own_{layer.name}_{index}"
        module.register_parameter(name, nn.Parameter(value.clone(), requires_grad=False))
        with module.graph.inserting_before(layer):
            layer.update_arg(index, module.graph.get_attr(name))
    return value


def _store(module: GraphModule, layer: Node, index: int, value: Tensor) -> None:
    node = layer.args[index]
    assert isinstance(node, Node)
    owner, _, leaf = str(node.target).rpartition(".")
    place = module.get_submodule(owner)
    old: Tensor = getattr(place, leaf)
    delattr(place, leaf)
    made = nn.Parameter(value.to(old.dtype).contiguous(), requires_grad=False)
    place.register_parameter(leaf, made)
