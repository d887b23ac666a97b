"""A graph as rules see it: nodes and values, of whatever file they came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

WHOLE = "the file"
"""Label of the node that stands for a file as a whole."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor between nodes.

    Attributes:
        name: As its file calls it.
        dtype: `float32`, `int64`, ...; None where it is not known.
        shape: Sizes, None for those that are free; None where not even the rank is known.
        initializer: Whether it is stored in the file, weights of a program included.
        numbers: Its elements where they are known and few, first axis slowest.
        extremes: Least and largest element of stored integers.
        data_dependent: Whether a size of it depends on what the data are.
    """

    name: str
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None
    initializer: bool = False
    numbers: tuple[Any, ...] | None = None
    extremes: tuple[int, int] | None = None
    data_dependent: bool = False

    @property
    def dynamic(self) -> bool:
        """Whether a size is known to be free."""
        return self.shape is not None and None in self.shape


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operation.

    Attributes:
        label: What a person finds it by in its file.
        op: The operator: `TopK`, or `aten.topk` of a program.
        domain: Its domain, empty for ONNX's own.
        opset: Version of its domain, 0 where there is none.
        attributes: Name -> value; of a program all arguments that are no tensors.
        inputs: Its tensors in order, None for those left out.
        outputs: What it makes.
        module: Path of the module it came from, or nothing.
    """

    label: str
    op: str
    domain: str = ""
    opset: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Value | None, ...] = ()
    outputs: tuple[Value, ...] = ()
    module: str = ""

    def input(self, place: int) -> Value | None:
        """The input at a place, None where there is none."""
        return self.inputs[place] if place < len(self.inputs) else None

    @property
    def values(self) -> tuple[Value, ...]:
        """All inputs that are there, then all outputs."""
        return (*(value for value in self.inputs if value is not None), *self.outputs)


@dataclass(frozen=True, kw_only=True)
class View:
    """A file's graph, subgraphs and called functions included.

    Attributes:
        path: The file, None for a program in memory.
        kind: `onnx` or `program`.
        nodes: All operations, those of subgraphs behind the node that holds them.
        inputs: What the graph takes.
        outputs: What it gives.
        opsets: Domain -> version.
        ir_version: Version of the ONNX format, 0 for a program.
        functions: Functions the file defines that are called: (domain, name) -> a calling node.
        external: Other files that it reads weights from, as it names them.
    """

    kind: str
    nodes: tuple[Node, ...]
    path: Path | None = None
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    opsets: Mapping[str, int] = field(default_factory=dict)
    ir_version: int = 0
    functions: Mapping[tuple[str, str], str] = field(default_factory=dict)
    external: tuple[str, ...] = ()

    @cached_property
    def by_operator(self) -> Mapping[str, tuple[Node, ...]]:
        """Operator -> nodes."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(node.op, []).append(node)
        return {op: tuple(nodes) for op, nodes in found.items()}

    @cached_property
    def whole(self) -> Node:
        """The node that stands for the file."""
        return Node(label=WHOLE, op="", inputs=self.inputs, outputs=self.outputs)

    def of(self, operators: Iterable[str]) -> Iterable[Node]:
        """The nodes of some operators; `*` for all of them, none for the file as a whole."""
        names = tuple(operators)
        if not names:
            return (self.whole,)
        if names == ("*",):
            return self.nodes
        return [node for name in names for node in self.by_operator.get(name, ())]
