"""Operators that TensorRT 8, or one before 10.15, does not know, as their parts.

Source: onnx/onnx-tensorrt, docs/operators.md of release/8.5-GA and release/8.6-GA, which do not
list LayerNormalization or CastLike; CHANGELOG.md of NVIDIA/TensorRT, 10.15 (RMSNormalization). GELU
comes as parts below opset 20 from the exporter already; attention see `onnx_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prunepass.backends.onnx_opset import Lowering, attribute
from prunepass.backends.onnx_types import FLOAT, type_of


def _layer_norm(tape: Any, node: Any) -> Any:
    x, scale, bias = (*node.inputs, None)[:3]
    rank = len(x.shape)
    first = attribute(node, "axis", -1) % rank
    over = {"axes": list(range(first - rank, 0)), "keepdims": 1}
    centred = tape.op("Sub", [x, tape.op("ReduceMean", [x], attributes=over)])
    squared = tape.op("Mul", [centred, centred])
    variance = tape.op("ReduceMean", [squared], attributes=over)
    little = _little(tape, node, x)
    deviation = tape.op("Sqrt", [tape.op("Add", [variance, little])])
    made = tape.op("Mul", [tape.op("Div", [centred, deviation]), scale])
    return [made if bias is None else tape.op("Add", [made, bias])]


def _little(tape: Any, node: Any, like: Any) -> Any:
    """The epsilon of a norm, in the type of what it is added to."""
    found = tape.op("Constant", [], attributes={"value_float": attribute(node, "epsilon", 1e-5)})
    kind = type_of(like)
    plain = kind is None or kind == FLOAT
    return found if plain else tape.op("Cast", [found], attributes={"to": kind})


def _rms_norm(tape: Any, node: Any) -> Any:
    """An operator of opset 23 and later, where axes are an input."""
    x, scale = node.inputs
    rank = len(x.shape)
    first = attribute(node, "axis", -1) % rank
    over = tape.op("Constant", [], attributes={"value_ints": list(range(first - rank, 0))})
    mean = tape.op("ReduceMean", [tape.op("Mul", [x, x]), over], attributes={"keepdims": 1})
    little = _little(tape, node, x)
    size = tape.op("Sqrt", [tape.op("Add", [mean, little])])
    return [tape.op("Mul", [tape.op("Div", [x, size]), scale])]


def _cast_like(tape: Any, node: Any) -> Any:
    x, like = node.inputs
    kind = type_of(like)
    return None if kind is None else [tape.op("Cast", [x], attributes={"to": kind})]


def _whole_mask(tape: Any, node: Any) -> Any:
    """An attention whose mask has a row for each query: runtimes do not repeat the only one."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None or mask.shape is None or len(mask.shape) < 2 or mask.shape[-2] != 1:
        return None
    queries = node.inputs[0].shape[-2] if len(node.inputs[0].shape) == 4 else None
    if not isinstance(queries, int) or queries == 1:
        return None
    rows = tape.op("Constant", [], attributes={"value_ints": [queries, 1]})
    inputs = [*node.inputs[:3], tape.op("Expand", [mask, rows]), *node.inputs[4:]]
    attributes = {name: held.value for name, held in node.attributes.items()}
    made = tape.op_multi_out(
        "Attention", inputs, attributes=attributes, num_outputs=len(node.outputs)
    )
    return list(made)


RMS_NORM: Mapping[str, Lowering] = MappingProxyType({"RMSNormalization": _rms_norm})
ATTENTION: Mapping[str, Lowering] = MappingProxyType({"Attention": _whole_mask})
PARTS: Mapping[str, Lowering] = MappingProxyType(
    {"LayerNormalization": _layer_norm, "CastLike": _cast_like}
)
