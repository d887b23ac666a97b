"""Values of an ONNX graph: types, shapes and the small constants that shapes are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunepass.doctor.view import Value

_FEW = 64
"""Elements up to which a constant's numbers are kept."""
_SAME = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators that leave the numbers of their first input as they are, in their order."""
_NAMES = {"float": "float32", "double": "float64"}


def type_name(number: int) -> str | None:
    """What an ONNX type is called in numpy and torch, None for none."""
    from onnx import TensorProto

    if number == TensorProto.UNDEFINED:
        return None
    try:
        name = TensorProto.DataType.Name(number).lower()
    except ValueError:
        return f"type {number}"
    return _NAMES.get(name, name)


def shaped(info: Any) -> Value:
    """The value that an `onnx.ValueInfoProto` tells of."""
    kind = info.type
    if not kind.HasField("tensor_type"):
        return Value(name=info.name)
    tensor = kind.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return Value(name=info.name, dtype=type_name(tensor.elem_type), shape=shape)


def stored(tensor: Any) -> Value:
    """The value of an `onnx.TensorProto`."""
    from onnx import numpy_helper

    dtype, shape = type_name(tensor.data_type), tuple(tensor.dims)
    known = Value(name=tensor.name, dtype=dtype, shape=shape, initializer=True)
    if tensor.external_data or dtype not in ("int64", "int32", "float32", "uint8", "int8", "bool"):
        return known
    count = 1
    for size in shape:
        count *= size
    if count == 0 or (dtype != "int64" and count > _FEW):
        return known
    array = numpy_helper.to_array(tensor)
    numbers = tuple(array.reshape(-1).tolist()) if count <= _FEW else None
    extremes = (int(array.min()), int(array.max())) if dtype == "int64" else None
    return replace(known, numbers=numbers, extremes=extremes)


def attribute_of(proto: Any) -> Any:
    """The value of an `onnx.AttributeProto`; a tensor or a graph is told by its kind alone."""
    from onnx import AttributeProto, helper

    if proto.type == AttributeProto.TENSOR:
        return stored(proto.t)
    if proto.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return "a graph"
    if proto.ref_attr_name:
        return None
    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def constant_output(
    op: str, attributes: Mapping[str, Any], inputs: tuple[Value | None, ...], told: Value
) -> Value:
    """An output with its numbers, where the node does no more than pass constants on."""
    if op == "Constant":
        return _constant(attributes, told)
    first = inputs[0] if inputs else None
    if op == "Identity" and first is not None:
        return replace(first, name=told.name)
    if op in _SAME and first is not None and first.numbers is not None:
        return replace(told, numbers=first.numbers)
    if op == "Shape" and first is not None and first.shape is not None:
        sizes = first.shape[attributes.get("start", 0) : attributes.get("end")]
        if None not in sizes:
            return replace(told, numbers=sizes)
    line = told.shape is None or len(told.shape) <= 1
    if op == "Concat" and line and all(v is not None and v.numbers is not None for v in inputs):
        joined = [x for v in inputs if v is not None for x in v.numbers or ()]
        return replace(told, numbers=tuple(joined[:_FEW]))
    return told


def _constant(attributes: Mapping[str, Any], told: Value) -> Value:
    for name, value in attributes.items():
        if name == "value" and isinstance(value, Value):
            return replace(value, name=told.name)
        if name in ("value_int", "value_ints"):
            numbers = tuple(value) if name == "value_ints" else (value,)
            return replace(
                told, dtype="int64", initializer=True, numbers=numbers,
                extremes=(min(numbers), max(numbers)) if numbers else None,
            )  # fmt: skip
        if name in ("value_float", "value_floats"):
            numbers = tuple(value) if name == "value_floats" else (value,)
            return replace(told, dtype="float32", initializer=True, numbers=numbers)
    return replace(told, initializer=True)
