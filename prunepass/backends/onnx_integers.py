"""Arithmetic on token numbers in 32 bits: TensorRT 8 has no 64-bit integers.

Its parser casts them down itself and warns at each; here it is written down, so that what the file
says is what runs. Sizes of tensors stay as they are: they are no arithmetic of the engine.

Source: onnx/onnx-tensorrt, docs/operators.md of release/8.5-GA ("TensorRT will attempt to cast down
INT64 to INT32").
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prunepass.backends.onnx_opset import Lowering, constant
from prunepass.backends.onnx_types import INT32, INT64, type_of

_COMPARING = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_RECKONING = ("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max")
_OF_SIZES = {*_RECKONING, "Shape", "Size", "Gather", "Squeeze", "Unsqueeze", "Concat", "Slice",
             "Cast", "Reshape"}  # fmt: skip


def _narrow(tape: Any, node: Any) -> Any:
    if any(x is None or type_of(x) != INT64 for x in node.inputs):
        return None
    if all(_is_size(x) for x in node.inputs):
        return None
    attributes = {k: v.value for k, v in node.attributes.items()}
    made = tape.op(node.op_type, [_in_32(tape, x) for x in node.inputs], attributes=attributes)
    if node.op_type in _COMPARING:
        return [made]
    return [tape.op("Cast", [made], attributes={"to": INT64})]


def _is_size(value: Any, depth: int = 12) -> bool:
    """Whether a value is reckoned from constants and the sizes of tensors alone."""
    if constant(value) is not None:
        return True
    node = value.producer()
    if node is None or depth == 0 or node.op_type not in _OF_SIZES:
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    return all(_is_size(x, depth - 1) for x in node.inputs if x is not None)


def _in_32(tape: Any, value: Any) -> Any:
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        (source,) = node.inputs
        if type_of(source) == INT32:
            return source
    return tape.op("Cast", [value], attributes={"to": INT32})


NARROW: Mapping[str, Lowering] = MappingProxyType(
    dict.fromkeys((*_RECKONING, *_COMPARING), _narrow)
)
