"""ONNX Runtime on tensors where they lie: nothing that is large is copied from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunepass.backends.onnx import OnnxEngine
from prunepass.backends.protocol import Engine

_CODES = {
    torch.float32: 1, torch.int32: 6, torch.int64: 7, torch.bool: 9, torch.float16: 10,
    torch.float64: 11, torch.bfloat16: 16,
}  # fmt: skip
"""How ONNX numbers the types of tensors."""
_NAMED = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16, "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool,
}  # fmt: skip


class BoundEngine:
    """An engine whose inputs are read where they lie and whose outputs stay where they are.

    An input is bound by its address, and anew only where it lies elsewhere than at the call before:
    a cache is bound once. Outputs are written into tensors of this object: what a call gives is
    overwritten by the next one.

    Args:
        engine: Whose session it uses. Inputs that lie on another device are copied to that of the
            session.
    """

    def __init__(self, engine: OnnxEngine) -> None:
        self.engine, self.session = engine, engine.session
        self.device, self.path = engine.device, engine.path
        self.binding = self.session.io_binding()
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._bound: dict[str, tuple[int, torch.Size]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = self.session.get_inputs()
        shapes = output_shapes(self.session, inputs)
        if shapes is None or len(given) != len(inputs):
            return self.engine(*inputs)
        for place, tensor in zip(given, inputs, strict=True):
            self.inputs[place.name] = here = tensor.detach().to(self.device).contiguous()
            self._bind(self.binding.bind_input, place.name, here)
        for place, shape in zip(self.session.get_outputs(), shapes, strict=True):
            have = self.outputs.get(place.name)
            if have is None or list(have.shape) != shape:
                dtype = _NAMED[place.type]
                self.outputs[place.name] = torch.empty(shape, dtype=dtype, device=self.device)
            self._bind(self.binding.bind_output, place.name, self.outputs[place.name])
        if self.device.type == "cuda":  # what torch is still writing is not there yet
            torch.cuda.synchronize(self.device)
        self.session.run_with_iobinding(self.binding)
        return tuple(self.outputs[place.name] for place in self.session.get_outputs())

    def _bind(self, bind: Any, name: str, tensor: Tensor) -> None:
        where = (tensor.data_ptr(), tensor.shape)
        if self._bound.get(name) == where:
            return
        bind(
            name, self.device.type, self.device.index or 0, _CODES[tensor.dtype],
            list(tensor.shape), tensor.data_ptr(),
        )  # fmt: skip
        self._bound[name] = where


def output_shapes(session: Any, inputs: Sequence[Tensor]) -> list[list[int]] | None:
    """The shapes that a session's outputs will have; None where its file does not tell them."""
    sizes: dict[str, int] = {}
    for place, tensor in zip(session.get_inputs(), inputs, strict=False):
        named = zip(place.shape, tensor.shape, strict=False)
        sizes.update({name: size for name, size in named if isinstance(name, str)})
    found = []
    for place in session.get_outputs():
        shape = [sizes.get(size, 0) if isinstance(size, str) else size for size in place.shape]
        if place.type not in _NAMED or not all(isinstance(n, int) and n > 0 for n in shape):
            return None
        found.append(shape)
    return found


def in_place(engine: Engine) -> Engine:
    """An engine for calls that follow one another: see `BoundEngine`.

    Engines of PyTorch read their inputs where they lie as they are.
    """
    return BoundEngine(engine) if isinstance(engine, OnnxEngine) else engine
