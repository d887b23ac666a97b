"""Sums that a scatter would form, as a sum over a one-hot matrix.

TensorRT's ScatterElements knows no reduction in several versions and forms wrong sums in others.

Source: onnx/onnx-tensorrt issues 953 and 957; docs/operators.md of release/10.1-GA.
"""

from __future__ import annotations

from typing import Any

from prunepass.backends.onnx_opset import attribute
from prunepass.backends.onnx_types import type_of


def one_hot_sum(tape: Any, node: Any) -> Any:
    """`ScatterElements` with reduction `add` without a scatter; None for anything else.

    The updates that aim at a place are found by comparing: places x updates numbers in all.
    """
    data, index, updates = node.inputs
    if attribute(node, "reduction", "none") != "add":
        return None
    rank = len(data.shape)
    axis = attribute(node, "axis", 0) % rank
    size = data.shape[axis]
    kind = type_of(data)
    if not isinstance(size, int) or kind is None:
        return None
    beside = tape.op("Constant", [], attributes={"value_ints": [axis]})
    places = tape.op("Constant", [], attributes={"value_ints": list(range(size))})
    shape = tape.op(
        "Constant",
        [],
        attributes={"value_ints": [size if a == axis else 1 for a in range(rank + 1)]},
    )
    places = tape.op("Reshape", [places, shape])
    aims = tape.op("Equal", [tape.op("Unsqueeze", [index, beside]), places])
    aims = tape.op("Cast", [aims], attributes={"to": kind})
    each = tape.op("Mul", [aims, tape.op("Unsqueeze", [updates, beside])])
    over = tape.op("Constant", [], attributes={"value_ints": [axis + 1]})
    joined = tape.op("ReduceSum", [each, over], attributes={"keepdims": 0})
    return [tape.op("Add", [data, joined])]
