"""How plain operations are written in ONNX that the exporter has no translation for.

It would decompose the whole program for one of them, tracing it once more: half of an export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

aten = torch.ops.aten


def translations() -> Mapping[Any, Callable[..., Any]]:
    """Operation -> what writes it, as `torch.onnx.export` takes it."""
    return {
        aten.rsub.Scalar: _taken_from,
        aten.__and__.Tensor: _both,
        aten.__or__.Tensor: _either,
    }


def _taken_from(x: Any, other: float, alpha: float = 1.0) -> Any:
    """other - alpha x."""
    op = _opset()
    number = op.CastLike(op.Constant(value_float=float(other)), x)
    taken = x if alpha == 1 else op.Mul(x, op.CastLike(op.Constant(value_float=float(alpha)), x))
    return op.Sub(number, taken)


def _both(x: Any, other: Any) -> Any:
    op = _opset()
    return op.And(x, other) if _is_bool(x, other) else op.BitwiseAnd(x, other)


def _either(x: Any, other: Any) -> Any:
    op = _opset()
    return op.Or(x, other) if _is_bool(x, other) else op.BitwiseOr(x, other)


def _is_bool(*values: Any) -> bool:
    import onnx_ir

    return all(value.dtype == onnx_ir.DataType.BOOL for value in values)


def _opset() -> Any:
    from onnxscript import opset18

    return opset18
