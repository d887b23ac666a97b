"""Which part of a model each node of an ONNX file belongs to, written down at export.

Nodes keep the names of what they were translated from; which site that was, names do not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.export import ExportedProgram

from prunepass.graph.parts import Part, parts

KEY = "prunepass.part"
"""In the metadata of a node."""
_SOURCE = "pkg.torch.onnx.fx_node"
"""Where the exporter writes what a node was translated from: `%name : [...] = ...`."""


def write_parts(model: Any, program: ExportedProgram) -> None:
    """Writes the part of each node into an `onnx_ir.Model` that was translated from a program."""
    named = {f"%{node.name}": part for node, part in parts(program.graph).items()}
    for node in model.graph:
        part = named.get(node.metadata_props.get(_SOURCE, "").split(" ", 1)[0])
        if part is not None:
            node.metadata_props[KEY] = str(part)


@dataclass(frozen=True)
class NodeOfFile:
    """A node of an ONNX graph.

    Attributes:
        name: Its name.
        operator: E.g. `MatMul`.
        inputs: Names of values.
        outputs: Names of values.
        part: What is written in its metadata.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    part: Part | None


def nodes_of(model: Any) -> list[NodeOfFile]:
    """The nodes of an `onnx.ModelProto`, in the order they run."""
    return [
        NodeOfFile(
            node.name,
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            next((Part.parse(p.value) for p in node.metadata_props if p.key == KEY), None),
        )
        for node in model.graph.node
    ]


def spread(nodes: Sequence[NodeOfFile], known: Mapping[str, Part]) -> dict[str, Part]:
    """Name of a node -> its part.

    A runtime fuses nodes and lays values out anew. What it fused gives a value that the file has,
    too; what it put in between belongs to what it feeds, or else to what feeds it.

    Args:
        nodes: Of the graph that runs, in order.
        known: Name of a value -> part of the node that gives it.
    """
    found: dict[str, Part] = {}
    maker = {out: node for node in nodes for out in node.outputs}
    for node in nodes:
        part = node.part or next((known[out] for out in node.outputs if out in known), None)
        if part is not None:
            found[node.name] = part
    for node in reversed(nodes):
        if node.name in found:
            for value in node.inputs:
                if value in maker:
                    found.setdefault(maker[value].name, found[node.name])
    for node in nodes:
        fed = (found.get(maker[v].name) for v in node.inputs if v in maker)
        part = found.get(node.name) or next((p for p in fed if p is not None), None)
        if part is not None:
            found[node.name] = part
    return found


def parts_of_values(nodes: Iterable[NodeOfFile]) -> dict[str, Part]:
    """Name of a value -> part of the node that gives it, where one is written down."""
    return {out: node.part for node in nodes if node.part is not None for out in node.outputs}
