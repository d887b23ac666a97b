"""The configuration of one model for NVIDIA Triton.

Source: triton-inference-server/common, protobuf/model_config.proto; "Model Configuration" and
"Model Repository" of Triton's documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunepass.backends.archives import check_external
from prunepass.errors import BackendError, UsageError
from prunepass.serving.text_format import Message, Word

FILES = {"onnx": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
"""Backend of a bundle -> Triton's backend, and what the model is called in a version folder."""
_TYPES = {
    1: "TYPE_FP32", 2: "TYPE_UINT8", 3: "TYPE_INT8", 6: "TYPE_INT32", 7: "TYPE_INT64",
    9: "TYPE_BOOL", 10: "TYPE_FP16", 11: "TYPE_FP64", 16: "TYPE_BF16",
}  # fmt: skip
"""Element types as ONNX numbers them."""


def config(
    name: str, model: Path, *, backend: str, most: int, delay: int, usual: int | None = None
) -> Message:
    """What `config.pbtxt` says of a model.

    Args:
        name: Of its folder.
        model: Its ONNX file, which for an engine is the one it was built from.
        backend: Of the bundle.
        most: Largest batch that is formed; a model of one fixed batch forms none.
        delay: Microseconds that a request waits for others.
        usual: The batch that an engine is tuned for.

    Raises:
        BackendError: The file is damaged, its weights lie elsewhere, or it has tensors that Triton
            has no type for.
    """
    import onnx

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except Exception as error:
        raise BackendError(
            f"cannot read {model.name}", found=str(error)[:200], fix="compile again"
        ) from error
    check_external(proto, model.name)
    graph = proto.graph
    values = [*graph.input, *graph.output]
    free = all(_sizes(value)[:1] == [-1] for value in values)
    held: dict[str, Any] = {
        "name": name,
        "backend": FILES[backend][0],
        "default_model_filename": FILES[backend][1],
        "max_batch_size": most if free else 0,
        "input": [_tensor(value, free=free) for value in graph.input],
        "output": [_tensor(value, free=free) for value in graph.output],
        "instance_group": [
            {"count": 1, "kind": Word("KIND_GPU" if backend == "tensorrt" else "KIND_AUTO")}
        ],
        "version_policy": {"latest": {"num_versions": 1}},
    }
    if free:
        batching: dict[str, Any] = {"max_queue_delay_microseconds": delay}
        if usual is not None:
            batching = {"preferred_batch_size": [usual], **batching}
        held["dynamic_batching"] = batching
    return held


def check_batching(most: int, delay: int) -> None:
    """Nothing, if a server can form such batches.

    Raises:
        UsageError: It cannot.
    """
    if most < 1 or delay < 0:
        raise UsageError(
            "a server forms batches of at least one",
            found=f"--max-batch {most} --delay {delay}", fix="--max-batch 64 --delay 100",
        )  # fmt: skip


def _tensor(value: Any, *, free: bool) -> Message:
    kind = value.type.tensor_type.elem_type
    if kind not in _TYPES:
        raise BackendError(
            f"Triton has no type for {value.name}", found=f"ONNX type {kind}", fix="another model"
        )
    sizes = _sizes(value)
    return {
        "name": value.name,
        "data_type": Word(_TYPES[kind]),
        "dims": sizes[1:] if free else sizes,
    }


def _sizes(value: Any) -> list[int]:
    return [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
