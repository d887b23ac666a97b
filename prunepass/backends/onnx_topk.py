"""TopK of many, which TensorRT refuses, by counting how many numbers are larger than each.

Source: onnx/onnx-tensorrt, docs/operators.md of release/10.1-GA ("K input must be less than 3840").
"""

from __future__ import annotations

from typing import Any

from prunepass.backends.onnx_opset import attribute, constant

LARGEST_K = 3839
_TILE = 1024
"""Numbers that all others are compared with at once."""


def rank_by_counting(tape: Any, node: Any) -> Any:
    """The outputs of a TopK along the last axis without one.

    The place of a number is how many come before it: larger ones (or smaller ones, where the
    smallest are asked for), and equal ones of lower index, as ONNX defines TopK. That takes N
    comparisons a number, a tile of them at a time.
    """
    x, k = node.inputs[0], constant(node.inputs[1])
    if k is None or int(k.reshape(())) <= LARGEST_K:
        return None
    rank = len(x.shape)
    total = x.shape[-1]
    if attribute(node, "axis", -1) % rank != rank - 1 or not isinstance(total, int):
        return None
    before = "Greater" if attribute(node, "largest", 1) else "Less"
    places = _floats(tape, range(total))
    column = tape.op("Unsqueeze", [places, _ints(tape, [1])])
    each = tape.op("Unsqueeze", [x, _ints(tape, [-1])])
    found = None
    for start in range(0, total, _TILE):
        end = min(start + _TILE, total)
        tile = tape.op("Unsqueeze", [_cut(tape, x, start, end), _ints(tape, [-2])])
        earlier = tape.op("Less", [_floats(tape, range(start, end)), column])
        tied = tape.op("And", [tape.op("Equal", [tile, each]), earlier])
        ahead = tape.op("Or", [tape.op(before, [tile, each]), tied])
        ahead = tape.op("Cast", [ahead], attributes={"to": 1})
        counted = tape.op("ReduceSum", [ahead, _ints(tape, [-1])], attributes={"keepdims": 0})
        found = counted if found is None else tape.op("Add", [found, counted])
    none = tape.op("Sub", [found, found])
    who = tape.op("Add", [none, places])
    where = tape.op("Cast", [found], attributes={"to": 7})
    order = tape.op("ScatterElements", [none, where, who], attributes={"axis": rank - 1})
    first = _cut(tape, order, 0, int(k.reshape(())))
    indices = tape.op("Cast", [first], attributes={"to": 7})
    values = tape.op("GatherElements", [x, indices], attributes={"axis": rank - 1})
    return [values, indices]


def _cut(tape: Any, x: Any, start: int, end: int) -> Any:
    return tape.op("Slice", [x, *(_ints(tape, [n]) for n in (start, end, -1))])


def _ints(tape: Any, numbers: list[int]) -> Any:
    return tape.op("Constant", [], attributes={"value_ints": numbers})


def _floats(tape: Any, numbers: range) -> Any:
    return tape.op("Constant", [], attributes={"value_floats": [float(n) for n in numbers]})
