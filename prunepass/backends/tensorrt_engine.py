"""A TensorRT engine that runs, where it runs, and one that is still to be built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunepass.errors import BackendError

_DRIVER = Path("/proc/driver/nvidia/version")
_TYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32,
    "INT64": torch.int64, "BOOL": torch.bool, "INT8": torch.int8, "UINT8": torch.uint8,
}  # fmt: skip


def fingerprint() -> dict[str, str]:
    """What an engine is bound to on this machine: GPU, TensorRT and driver."""
    import tensorrt as trt

    major, minor = torch.cuda.get_device_capability()
    text = _DRIVER.read_text(encoding="utf-8") if _DRIVER.is_file() else ""
    driver = re.search(r"Kernel Module\D+(\d+(?:\.\d+)+)", text)
    return {
        "gpu": f"{torch.cuda.get_device_name()} ({major}.{minor})",
        "tensorrt": str(trt.__version__),
        "driver": driver[1] if driver else "unknown",
    }


@dataclass(frozen=True)
class TensorRTEngine:
    """An engine on this machine's GPU.

    Attributes:
        engine: The `tensorrt.ICudaEngine`.
        context: Its `tensorrt.IExecutionContext`.
        path: The file it was read from.
        tolerance: Largest relative difference to the program that its precision explains.
    """

    engine: Any
    context: Any
    path: Path | None
    tolerance: float

    @classmethod
    def of(cls, plan: bytes, path: Path | None, *, tolerance: float) -> TensorRTEngine:
        """The engine that a serialised one holds.

        Raises:
            BackendError: It is damaged, or of another machine.
        """
        import tensorrt as trt

        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                "TensorRT refuses an engine", found=str(path or "one just built"),
                fix="compile again on this machine",
            )  # fmt: skip
        return cls(engine, engine.create_execution_context(), path, tolerance)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cuda", torch.cuda.current_device())

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        taken = [n for n in names if self.engine.get_tensor_mode(n).name == "INPUT"]
        if len(taken) != len(inputs):
            raise BackendError(
                "wrong number of inputs for an engine",
                found=f"{len(inputs)}, it takes {len(taken)}: {', '.join(taken)}",
                fix="as many tensors as the model was captured with",
            )
        held = []  # addresses are worth nothing once their tensors are gone
        for name, given in zip(taken, inputs, strict=True):
            here = given.detach().to(self.device, self._type(name)).contiguous()
            if not self.context.set_input_shape(name, tuple(here.shape)):
                raise BackendError(
                    f"the engine was not built for {name} of this shape",
                    found=str(list(here.shape)),
                    fix="compile with --profile or --profile-lengths that hold it",
                )  # fmt: skip
            self.context.set_tensor_address(name, here.data_ptr())
            held.append(here)
        outputs = []
        for name in (n for n in names if n not in taken):
            shape = tuple(self.context.get_tensor_shape(name))
            made = torch.empty(shape, dtype=self._type(name), device=self.device)
            self.context.set_tensor_address(name, made.data_ptr())
            outputs.append(made)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise BackendError(
                "TensorRT could not run the engine", found=str(self.path), fix="compile again here"
            )
        stream.synchronize()
        return tuple(out.to(inputs[0].device) for out in outputs)

    def _type(self, name: str) -> torch.dtype:
        return _TYPES[self.engine.get_tensor_dtype(name).name]


@dataclass(frozen=True)
class UnbuiltEngine:
    """The place of an engine that this machine cannot build.

    Attributes:
        path: The ONNX file it is built from.
        why: Why there is none.
        commands: The file that says how to build it.
        tolerance: Largest relative difference to the program that its precision explains.
    """

    path: Path
    why: str
    commands: Path
    tolerance: float

    @property
    def told(self) -> str:
        """That it is not built, why, and how it will be, in one line."""
        return f"not built yet: {self.why}; {self.commands.name} beside each has the commands"

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        raise BackendError(
            "this TensorRT engine is not built yet", found=self.why,
            fix=f"load the bundle where TensorRT is, or see {self.commands}",
        )  # fmt: skip
