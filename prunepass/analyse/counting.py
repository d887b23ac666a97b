"""What a program costs, by part: multiply-accumulates, parameters and bytes, read off its graph.

All of it is theory: formulas over shapes. What a machine makes of it is what `prunepass bench`
measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.analyse.activations import bytes_of, is_item, is_view, most_alive
from prunepass.analyse.flops import node_kind, node_macs, read_nodes
from prunepass.graph import meta
from prunepass.graph.parts import Part, parts

_KNOWN = ("aten", "prims", "prunepass")
"""Where operations come from that do not multiply where they have no formula, but for these:"""
_MULTIPLY = {
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_trilinear", "bilinear",
    "cdist", "gru", "lstm", "rnn_tanh", "rnn_relu", "_flash_attention_forward",
    "_efficient_attention_forward", "quantized_linear",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a part of a program costs.

    Attributes:
        macs: Multiply-accumulates of one run.
        parameters: Numbers in the parameters it reads; one that several parts share counts in the
            first of them.
        weight_bytes: Bytes of its parameters and constants.
        activation_bytes: Bytes that its operations write. Views write nothing; an engine that
            fuses operations writes less.
    """

    macs: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 per multiply-accumulate."""
        return 2 * self.macs

    def __add__(self, other: Count) -> Count:
        return Count(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a program costs, by part and by kind of operation.

    Attributes:
        parts: Part -> what it costs, in the order they run.
        kinds: Kind of operation -> multiply-accumulates: `linear`, `convolution`, `attention`,
            `scan`, `product` (of two activations, elsewhere), `scoring`, `merging`.
        peak_activation_bytes: Most bytes of inputs and activations that are needed at one time,
            one operation after the other, nothing fused and nothing reused in place.
        uncounted: Operations that no formula knows and that may multiply.
    """

    parts: Mapping[Part, Count]
    kinds: Mapping[str, int]
    peak_activation_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> Count:
        """The whole program."""
        return _summed(self.parts.values())

    @property
    def sites(self) -> dict[str, Count]:
        """By site: `block[3].attention`; what is in front, between and behind has a name, too."""
        return self._by(lambda part: part.site)

    @property
    def layers(self) -> dict[str, Count]:
        """By block: `block[3]`."""
        return self._by(lambda part: part.layer)

    @property
    def groups(self) -> dict[str, Count]:
        """By what is done: `attention`, `mlp`, `scan`, `scoring`, `gather`, `other`."""
        return self._by(lambda part: part.group)

    def to_dict(self) -> dict[str, Any]:
        """Plain data. FLOPs stand beside MACs, and everything is marked as theory."""
        named = {"layers": self.layers, "sites": self.sites, "groups": self.groups}
        return {
            "theoretical": True,
            **_plain(self.total),
            "peak_activation_bytes": self.peak_activation_bytes,
            "macs_by_kind": dict(self.kinds),
            **{name: {k: _plain(v) for k, v in table.items()} for name, table in named.items()},
            "uncounted": list(self.uncounted),
        }

    def _by(self, key: Any) -> dict[str, Count]:
        found: dict[str, Count] = {}
        for part, count in self.parts.items():
            found[key(part)] = found.get(key(part), Count()) + count
        return found


def counts(
    program: ExportedProgram, *, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> Counts:
    """What one run of a program costs.

    MACs by formula: a linear layer of N rows, I inputs and O outputs has N I O; a convolution its
    outputs times its weights of one output channel; attention of T queries, S keys and D channels a
    head 2 T S D for each head, fused or written out, keys shared by heads or not; a selective scan
    see `analyse.flops`; merging R tokens into K of C channels K R C. Scoring is counted as what it
    computes. Norms, softmax, activations and additions are not counted, as is usual.

    Args:
        program: Any program; without labels everything is in one part.
        batch: What its dynamic sizes are taken as, where the batch is the only one.
        sizes: What they are taken as, by symbol, instead.
    """
    taken = batch if sizes is None else sizes
    nodes = read_nodes(program.graph)

    def shape_of(node: Node) -> tuple[int, ...]:
        return meta.concrete_shape(node, taken) or ()

    found: dict[Part, Count] = {}
    kinds: dict[str, int] = {}
    belongs, weights = parts(program.graph), _weight_names(program)
    for node in nodes:
        if node not in belongs:
            continue
        part, macs = belongs[node], node_macs(node, shape_of)
        written = 0 if is_view(node) or is_item(node) else bytes_of(node, taken)
        added = Count(macs=macs, activation_bytes=written)
        found[part] = found.get(part, Count()) + added
        if macs:
            kind = {"scoring": "scoring", "gather": "merging"}.get(
                part.group, _kind(node, part, weights)
            )
            kinds[kind] = kinds.get(kind, 0) + macs
    for part, count in _weights(program, belongs).items():
        found[part] = found.get(part, Count()) + count
    return Counts(
        parts=found,
        kinds=kinds,
        peak_activation_bytes=most_alive(nodes, weights, taken),
        uncounted=tuple(sorted({str(n.target) for n in nodes if _is_unknown(n)})),
    )


def _kind(node: Node, part: Part, weights: Mapping[str, str]) -> str:
    """The kind of an operation; products of two activations in a branch of attention attend."""
    kind = node_kind(node)
    if kind != "product":
        return kind
    if any(_viewed(operand).name in weights for operand in node.all_input_nodes):
        return "linear"
    return "attention" if part.group == "attention" else "product"


def _viewed(node: Node) -> Node:
    while node.op == "call_function" and is_view(node):
        node = node.all_input_nodes[0]
    return node


def _weights(program: ExportedProgram, belongs: Mapping[Node, Part]) -> dict[Part, Count]:
    """Parameters and their bytes, at the part that reads them first; shared ones count once."""
    table = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    state = {**program.state_dict, **program.constants}
    found: dict[Part, Count] = {}
    seen: set[str] = set()
    for name, target in _weight_names(program).items():
        value = state.get(target)
        reader = next((n for n in _readers(table[name]) if n in belongs), None)
        if not isinstance(value, torch.Tensor) or reader is None or target in seen:
            continue
        seen.add(target)
        numbers = value.numel() if isinstance(value, torch.nn.Parameter) else 0
        count = Count(parameters=numbers, weight_bytes=value.nbytes)
        found[belongs[reader]] = found.get(belongs[reader], Count()) + count
    return found


def _readers(node: Node) -> Iterable[Node]:
    """Who reads a node; of a view its readers, since it computes nothing where it stands."""
    for user in node.users:
        if user.op == "call_function" and is_view(user) and user.users:
            yield from _readers(user)
        else:
            yield user


def _weight_names(program: ExportedProgram) -> dict[str, str]:
    """Placeholder -> name of the parameter, buffer or constant it stands for."""
    return {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind.name in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")
    }


def _is_unknown(node: Node) -> bool:
    if node.op != "call_function" or node_kind(node) != "":
        return False
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    space = getattr(node.target, "namespace", None)
    name = getattr(node.target, "__name__", "").split(".")[0]
    return name in _MULTIPLY or (space is not None and space not in _KNOWN)


def _summed(found: Iterable[Count]) -> Count:
    total = Count()
    for count in found:
        total = total + count
    return total


def _plain(count: Count) -> dict[str, int]:
    return {"macs": count.macs, "flops": count.flops, **asdict(count)}


def macs_by_layer(program: ExportedProgram) -> dict[str, int]:
    """Layer, or what stands before and behind the layers -> its multiply-accumulates."""
    return {name: count.macs for name, count in counts(program).layers.items()}
