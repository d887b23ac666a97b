"""Rotating the stream of a decoder so that layers which read it have orthogonal columns.

An RMS norm without gain gives a rotated result for a rotated stream, so a stream may be rotated if
all that read it are turned back, and all that write to it are turned along. Each part of a block
has a rotation of its own, the right singular vectors of its k or gate: the shortcuts between parts
change from one to the next by a product of their own, which costs, and is counted.

Source: WINA, arXiv 2505.19427, section on the transformation; no mean is taken off embeddings, as
the published code does, since that changes what a model with RMS norms computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from prunepass.analyse.projections import LINEAR, block_of, projections
from prunepass.analyse.rms_norm import RmsNorm, rms_norm, rms_norm_before
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import open_module, seal
from prunepass.graph.simplify import drop_casts, drop_checks
from prunepass.plans import Step
from prunepass.records import PassRecord

RULE = "orthogonal-columns"
SIZE = torch.ops.aten.sym_size.int  # a rotation leaves all sizes as they are
_WRITERS = {"attention": "o", "mlp": "down"}


@dataclass(frozen=True)
class Part:
    """Half of a block: what reads the stream through one norm, and what is added to it.

    Attributes:
        site: `block[3].attention` or `block[3].mlp`.
        pivot: The layer whose columns become orthogonal.
        norm: The norm in front.
        readers: All layers behind that norm.
        writer: The layer whose output is added to the stream.
        addition: Where it is added.
    """

    site: str
    pivot: Node
    norm: RmsNorm
    readers: tuple[Node, ...]
    writer: Node
    addition: Node


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
    parts = _parts(module, steps)
    final = _final(module, parts[-1].addition)
    start = parts[0].norm.stream
    _check_stream(parts, final, start)
    turns = [_turn_of(module, part) for part in parts]
    ends: list[Part | End] = [*parts, final]
    for end, turn in zip(ends, [*turns, turns[-1]], strict=True):
        _turn_readers(module, end, turn)
    _turn_start(module, start, turns[0])
    for number, part in enumerate(parts):
        following = turns[min(number + 1, len(turns) - 1)]
        _turn_writer(module, part.writer, following)
        if following is not turns[number]:
            change = turns[number].T @ following
            _turn_shortcut(module, part, change)
    sites = tuple(part.site for part in parts)
    return seal(module, program), PassRecord("rotate_inputs", sites)


def _parts(module: GraphModule, steps: Sequence[Step]) -> list[Part]:
    sites = projections(module.graph)
    table = meta.labelled(module.graph)
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
    wanted = [f"block[{i}].{part}" for i in range(count) for part in _WRITERS]
    if sorted(asked) != sorted(wanted):
        missing = sorted(set(wanted) ^ set(asked))
        raise PlanError(
            "a stream is rotated in all of its parts or in none",
            found=f"no step for {missing[0]}" if missing else "no steps",
            fix="one step for each attention and each MLP",
        )
    return [_part(site, asked[site], sites, table) for site in wanted]


def _part(site: str, pivot: Node, sites: dict[str, Node], table: dict[str, Node]) -> Part:
    norm = rms_norm_before(pivot)
    writer = sites.get(f"{site}.{_WRITERS[site.rpartition('.')[2]]}")
    addition = table.get(f"{site}:output")
    if writer is None or addition is None or writer not in addition.all_input_nodes:
        raise UnsupportedGraph(
            f"cannot rotate the stream at {site}",
            found="what is added to it is not the output of one linear layer",
            fix="rotate=False",
        )
    return Part(site, pivot, norm, _readers(norm), writer, addition)


def _readers(norm: RmsNorm) -> tuple[Node, ...]:
    """The linear layers behind a norm.

    Raises:
        UnsupportedGraph: Something else reads it, too.
    """
    readers = tuple(norm.output.users)
    for reader in readers:
        if reader.target is not LINEAR or reader.args[0] is not norm.output:
            raise UnsupportedGraph(
                f"cannot rotate what {meta.module_path(norm.output)} gives",
                found=f"{reader.target} reads it, which is no linear layer",
                fix="rotate=False",
            )
    return readers


@dataclass(frozen=True)
class End:
    """What reads the stream behind the last block: a norm and the head."""

    norm: RmsNorm
    readers: tuple[Node, ...]


def _final(module: GraphModule, last: Node) -> End:
    known = set(projections(module.graph).values())
    for head in module.graph.find_nodes(op="call_function", target=LINEAR):
        source: Any = head.args[0]
        while source.target is torch.ops.aten.slice.Tensor:
            source = source.args[0]  # the last token alone goes on
        norm = rms_norm(source)
        if head not in known and norm is not None and norm.stream is last:
            return End(norm, (head,))
    raise UnsupportedGraph(
        "cannot rotate the stream of this model",
        found="its last block is not followed by an RMS norm and a head",
        fix="rotate=False",
    )


def _check_stream(parts: Sequence[Part], final: End, start: Node) -> None:
    """Refuses a stream that anything else reads."""
    streams = [start, *(part.addition for part in parts)]
    ends: list[Part | End] = [*parts, final]
    for part in parts:
        added = [n for n in part.addition.all_input_nodes if n is not part.writer]
        if added != [part.norm.stream]:
            raise UnsupportedGraph(
                f"cannot rotate the shortcut of {part.site}",
                found=f"{[str(n.target) for n in added]} is added, not the stream itself",
                fix="rotate=False",
            )
    for number, (stream, end) in enumerate(zip(streams, ends, strict=True)):
        if end.norm.stream is not stream:
            raise UnsupportedGraph(
                f"cannot rotate the stream in front of {meta.module_path(end.norm.output)}",
                found="something stands between two parts of a block",
                fix="rotate=False",
            )
        allowed = {parts[number].addition} if number < len(parts) else set()
        inside = _norm_nodes(end.norm)
        others = [
            u for u in stream.users if u not in allowed and u not in inside and u.target is not SIZE
        ]
        if others:
            raise UnsupportedGraph(
                "cannot rotate a stream that is read besides its norms",
                found=f"{others[0].target} in {meta.module_path(others[0])}",
                fix="rotate=False",
            )


def _norm_nodes(norm: RmsNorm) -> set[Node]:
    """Nodes between a stream and the result of its norm."""
    found: set[Node] = set()
    frontier = [norm.bare]
    while frontier:
        node = frontier.pop()
        if node is norm.stream or node in found:
            continue
        found.add(node)
        frontier += node.all_input_nodes
    return found


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
