"""A program as text that stays the same from run to run: for tests, reviews and comparisons."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.graph import meta


def text(program: ExportedProgram) -> str:
    """A listing of a program, one line a tensor operation.

    A line reads `%3 = linear(%2, head.weight, head.bias) -> [B, 11]  # labels`. Values are numbered
    in graph order, whatever their nodes are called; parameters, buffers and constants go by their
    names; the batch is written B, other dynamic sizes D1, D2, ...; size arithmetic shows up as the
    sizes it computes, without lines of its own.
    """
    return "\n".join(_Listing(program).lines()) + "\n"


class _Listing:
    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.names: dict[Node, str] = {}
        self.symbols: dict[str, str] = {}

    def lines(self) -> list[str]:
        signature = self.program.graph_signature
        stored = {
            spec.arg.name: str(spec.target)
            for spec in signature.input_specs
            if spec.target is not None
        }
        found = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in stored:
                self.names[node] = stored[node.name]
            elif node.op == "placeholder":
                found.append(self._line(node, "input"))
            elif node.op == "output":
                found.append(f"return {self._value(node.args[0])}")
            elif not isinstance(meta.value(node), (torch.SymInt, torch.SymBool, int)):
                arguments = [self._value(a) for a in node.args]
                arguments += [f"{k}={self._value(v)}" for k, v in sorted(node.kwargs.items())]
                found.append(self._line(node, f"{_op(node)}({', '.join(arguments)})"))
        return found

    def _line(self, node: Node, what: str) -> str:
        number = sum(name.startswith("%") for name in self.names.values())
        self.names[node] = f"%{number}"
        labels = ", ".join(meta.labels(node))
        line = f"%{number} = {what} -> {self._shape(meta.value(node))}"
        return f"{line}  # {labels}" if labels else line

    def _shape(self, val: Any) -> str:
        if isinstance(val, torch.Tensor):
            kind = (
                "" if val.dtype.is_floating_point else f" {str(val.dtype).removeprefix('torch.')}"
            )
            return "[" + ", ".join(self._size(s) for s in val.shape) + "]" + kind
        if isinstance(val, (tuple, list)):
            return "(" + ", ".join(self._shape(v) for v in val) + ")"
        return str(val)

    def _size(self, size: int | torch.SymInt) -> str:
        if isinstance(size, int):
            return str(size)
        shown = str(size.node.expr)
        for name in sorted({str(s) for s in size.node.expr.free_symbols}):
            count = len(self.symbols)
            short = self.symbols.setdefault(name, f"D{count}" if count else "B")
            shown = re.sub(rf"\b{re.escape(name)}\b", short, shown)
        return shown

    def _value(self, value: Any) -> str:
        if isinstance(value, Node):
            val = meta.value(value)
            return self._size(val) if isinstance(val, torch.SymInt) else self.names[value]
        if isinstance(value, (tuple, list)):
            return "[" + ", ".join(self._value(v) for v in value) + "]"
        if isinstance(value, float):
            return f"{value:.9g}"
        return str(value)


def _op(node: Node) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    return str(name).removesuffix(".default")
