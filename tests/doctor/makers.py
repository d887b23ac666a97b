"""What example graphs are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """Two graphs for one rule.

    Attributes:
        target: Where the rule holds.
        bad: Makes the graph that it has to find.
        good: Makes the graph that it must leave alone.
    """

    target: str
    bad: Callable[[], Any]
    good: Callable[[], Any]


def onnx(
    text: str, *, opset: int = 17, ir: int = 8, domains: str = "", functions: str = ""
) -> Callable[[], Any]:
    """What makes an `onnx.ModelProto` of a graph in ONNX's text format."""

    def make() -> Any:
        from onnx import parser

        imports = f'"" : {opset}' + domains
        return parser.parse_model(
            f"<ir_version: {ir}, opset_import: [{imports}]>\n{text}\n{functions}"
        )

    return make


FUNCTION = """<domain: "mine", opset_import: ["" : 17]>
    double_it (x) => (y) { y = Add(x, x) }"""
RELU = onnx("g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }")
SCAN = """g (float[3] start, float[5, 3] x) => (float[3] last, float[5, 3] y) {
    last, y = Scan<num_scan_inputs = 1, body = step (float[3] s, float[3] e)
        => (float[3] t, float[3] z) { t = Add(s, e) z = Identity(t) }>(start, x) }"""
CALL = "g (float[2, 8] x) => (float[2, 8] y) {{ y = {call}(x) }}"


def one(node: str, kind: str = "float", shape: str = "2, 8", out: str = "") -> str:
    """A graph of one node from `x` to `y`, of one type."""
    return f"g ({kind}[{shape}] x) => ({out or kind}[{shape}] y) {{ y = {node} }}"
