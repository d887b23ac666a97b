"""Attention for TensorRT as its parts, at every opset.

From opset 23 on the exporter writes one operator. TensorRT reads that from 10.14 on and makes a
layer of it that is one fused kernel or nothing: where it has none for a type and a size of head,
the build fails. Products around a softmax are read by every version, and fused where that is
possible.

Source: NVIDIA/TensorRT, CHANGELOG.md, 10.14 ("Added support for the Attention operator"); NVIDIA's
TensorRT documentation, "Fused Attention", method 2, and IAttention::setDecomposable;
github.com/NVIDIA/TensorRT/issues/4705.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations(*, whole: bool) -> dict[Any, Callable[..., Any]]:
    """How the exporter writes attention down: nothing, where it may be what its opset has.

    Args:
        whole: Whether attention may be one operator.
    """
    if whole:
        return {}
    from onnxscript.function_libs.torch_lib.ops import nn

    return {
        torch.ops.aten.scaled_dot_product_attention.default: nn.aten_scaled_dot_product_attention
    }
