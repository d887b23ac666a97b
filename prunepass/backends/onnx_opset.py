"""What operators of opset 18 become in opset 17: arguments that were attributes then.

The exporter writes opset 18 at least; TensorRT 8.5 and 8.6 read up to 17.

Source: ONNX, docs/Changelog.md, versions 13 to 18 of the operators below; onnx/onnx-tensorrt,
docs/operators.md of release/8.5-GA and release/8.6-GA ("operators up to Opset 17").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Lowering = Callable[[Any, Any], Any]
"""(`onnx_ir.tape.Tape`, node) -> the values in place of its outputs, None to leave it."""

_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
               "ReduceMin", "ReduceProd", "ReduceSumSquare")  # fmt: skip
"""Those whose axes became an input in opset 18; `ReduceSum` had them there since 13."""


def constant(value: Any) -> Any:
    """What a value always is, as an array; None where that is not known."""
    import onnx_ir

    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def attribute(node: Any, name: str, otherwise: Any) -> Any:
    """An attribute of a node, or what it is when left out."""
    found = node.attributes.get(name)
    return otherwise if found is None else found.value


def _axes_as_attribute(tape: Any, node: Any) -> Any:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    axes = constant(node.inputs[1])
    if axes is None:
        return None
    given = {"keepdims": attribute(node, "keepdims", 1)}
    if axes.size:
        given["axes"] = [int(axis) for axis in axes]
    elif attribute(node, "noop_with_empty_axes", 0):
        return [tape.op("Identity", [node.inputs[0]])]
    return [tape.op(node.op_type, [node.inputs[0]], attributes=given)]


def _sizes_of_split(tape: Any, node: Any) -> Any:
    number = attribute(node, "num_outputs", None)
    if number is None:
        return None
    axis = attribute(node, "axis", 0)
    size = node.inputs[0].shape[axis]
    part = -(-size // number)
    sizes = [min(part, size - part * i) for i in range(number)]
    told = tape.op("Constant", [], attributes={"value_ints": sizes})
    return tape.op_multi_out(
        "Split", [node.inputs[0], told], num_outputs=number, attributes={"axis": axis}
    )


def _all_axes_of_pad(tape: Any, node: Any) -> Any:
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    pads, axes = constant(node.inputs[1]), constant(node.inputs[3])
    if pads is None or axes is None:
        return None
    rank, number = len(node.inputs[0].shape), len(axes)
    every = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        every[axis % rank] = int(pads[i])
        every[axis % rank + rank] = int(pads[i + number])
    told = tape.op("Constant", [], attributes={"value_ints": every})
    mode = {"mode": attribute(node, "mode", "constant")}
    return [tape.op("Pad", [node.inputs[0], told, node.inputs[2]], attributes=mode)]


def _plain_resize(tape: Any, node: Any) -> Any:
    """Attributes of opset 18 left out where they say what opset 17 does anyway."""
    added = {"antialias": 0, "keep_aspect_ratio_policy": "stretch"}
    named = [name for name in added if name in node.attributes]
    if not named or any(attribute(node, name, None) != added[name] for name in named):
        return None
    left = {k: v.value for k, v in node.attributes.items() if k not in added}
    return [tape.op("Resize", list(node.inputs), attributes=left)]


OPSET_17: Mapping[str, Lowering] = MappingProxyType(
    {
        **dict.fromkeys(_REDUCTIONS, _axes_as_attribute),
        "Split": _sizes_of_split,
        "Pad": _all_axes_of_pad,
        "Resize": _plain_resize,
    }
)
