"""The backends by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from prunepass.backends.aot_inductor import AotInductorBackend
from prunepass.backends.eager import EagerBackend
from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.protocol import Backend
from prunepass.backends.tensorrt import TensorRTBackend
from prunepass.errors import UsageError, nearest

BACKENDS: Mapping[str, Callable[..., Backend]] = MappingProxyType(
    {
        "onnx": OnnxBackend,
        "aot_inductor": AotInductorBackend,
        "eager": EagerBackend,
        "tensorrt": TensorRTBackend,
    }
)


def backend(name: str, **settings: Any) -> Backend:
    """The backend of a name, with its settings.

    Raises:
        UsageError: The name is unknown.
    """
    if name not in BACKENDS:
        raise UsageError(
            f"unknown backend {name!r}", found=name, fix=f"one of {nearest(name, BACKENDS)}"
        )
    return BACKENDS[name](**settings)
