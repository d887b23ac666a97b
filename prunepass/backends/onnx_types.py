"""The type of a value where the exporter does not say it: values of inlined functions have none."""

from __future__ import annotations

from typing import Any

FLOAT, INT32, INT64 = 1, 6, 7
_AS_THE_FIRST = frozenset(
    ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Exp", "Log", "Transpose", "Reshape",
     "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements", "Expand", "Flatten", "Identity",
     "Concat", "MatMul", "Softmax", "Split", "Min", "Max", "ScatterElements", "ReduceSum",
     "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL2",
     "LayerNormalization", "RMSNormalization", "BatchNormalization", "Conv", "ConvTranspose",
     "Gemm", "Relu", "LeakyRelu", "Elu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Softplus",
     "Tanh", "Erf", "Sin", "Cos", "Pow", "Reciprocal", "Clip", "Floor", "Ceil", "Round", "Sign",
     "Mod", "Sum", "Mean", "CumSum", "Trilu", "Tile", "Einsum", "LogSoftmax", "AveragePool",
     "MaxPool", "GlobalAveragePool", "Resize", "Pad", "Range")
)  # fmt: skip


def type_of(value: Any, depth: int = 20) -> int | None:
    """The element type of a value, as ONNX numbers them; None where it cannot be told."""
    if value.dtype is not None:
        return int(value.dtype)
    node = value.producer()
    if node is None or depth == 0:
        return None
    if node.op_type == "Cast":
        return int(node.attributes["to"].value)
    if node.op_type in ("CastLike", "Where"):
        return type_of(node.inputs[1], depth - 1)
    if node.op_type in ("Shape", "Size", "ArgMax", "ArgMin", "NonZero"):
        return INT64
    if node.op_type == "TopK" and value is node.outputs[1]:
        return INT64
    if node.op_type == "TopK" or node.op_type in _AS_THE_FIRST:
        return type_of(node.inputs[0], depth - 1)
    return None
