"""How TensorRT's Python interface and `trtexec` differ from 8.5 to 11, as data.

What is the same in all of them, and all that is used besides: `Builder.build_serialized_network`,
`IBuilderConfig.set_memory_pool_limit`, timing caches, `OnnxParser.parse_from_file`, optimisation
profiles, `Runtime.deserialize_cuda_engine`, and tensors by name (`num_io_tensors`,
`set_input_shape`, `set_tensor_address`, `execute_async_v3`), which came with 8.5 and are the only
way since 10.

Source: NVIDIA/TensorRT, python/src/infer/pyCore.cpp, pyFoundationalTypes.cpp and
samples/common/sampleOptions.cpp of release/8.5, v8.6.1, v9.1.0, release/10.0 and v11.0; "Migrating
Python Code from TensorRT 8.x to 10.x" and "Migrating from TensorRT 10.x to 11.x" in NVIDIA's
TensorRT documentation; onnx/onnx-tensorrt, docs/operators.md of release/8.5-GA and 10.1-GA, and
"ONNX Opset Guide" of TensorRT 11 (opsets).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from prunepass.backends.tensorrt_settings import TensorRTSettings
from prunepass.errors import BackendError

OLDEST = (8, 5)


@dataclass(frozen=True)
class Interface:
    """What one version of TensorRT is like.

    Attributes:
        version: (major, minor).
        opset: Newest ONNX operator set that its parser reads.
        explicit_batch: Whether a network must be told that its batch is an axis.
        strongly_typed: `never`, `asked` by a flag of the network, or `always`. Where it is not
            known, precision is a flag of the builder, which may then round any layer.
        levels: Whether the builder has optimisation levels.
        bf16: Whether it knows bfloat16.
        int64: Whether integers of 64 bits stay what they are; else they become 32.
        build_only: What tells `trtexec` not to run the engine.
    """

    version: tuple[int, int]
    opset: int
    explicit_batch: bool
    strongly_typed: str
    levels: bool
    bf16: bool
    int64: bool
    build_only: str


INTERFACES = (
    Interface((8, 5), 17, True, "never", False, False, False, "--buildOnly"),
    Interface((8, 6), 17, True, "never", True, False, False, "--skipInference"),
    Interface((9, 0), 19, True, "never", True, True, False, "--skipInference"),
    Interface((10, 0), 20, False, "asked", True, True, True, "--skipInference"),
    Interface((11, 0), 25, False, "always", True, True, True, "--skipInference"),
)
"""The versions at which something changed, in order."""


def interface(version: str) -> Interface:
    """What a version is like, given as `tensorrt.__version__` says it.

    Raises:
        BackendError: It is older than 8.5, or no version.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    told = (int(found[1]), int(found[2])) if found else (0, 0)
    known = [one for one in INTERFACES if one.version <= told]
    if not known:
        raise BackendError(
            "this TensorRT is not supported", found=f"version {version}",
            fix="TensorRT 8.5 or newer: pip install tensorrt",
        )  # fmt: skip
    return known[-1]


def check(known: Interface, settings: TensorRTSettings) -> None:
    """Nothing, if a version can build what the settings ask for.

    Raises:
        BackendError: It cannot.
    """
    name = ".".join(map(str, known.version))
    if settings.precision == "bf16" and not known.bf16:
        raise BackendError(
            "this TensorRT has no bfloat16", found=f"TensorRT {name}", fix="--precision fp16"
        )
    if settings.opset > known.opset:
        raise BackendError(
            f"this TensorRT reads no ONNX of opset {settings.opset}", found=f"TensorRT {name}",
            fix=f"--opset {known.opset}",
        )  # fmt: skip


def network_flags(trt: Any, known: Interface) -> int:
    """What a network is created with.

    Args:
        trt: The module `tensorrt`.
        known: Its version.
    """
    kinds = trt.NetworkDefinitionCreationFlag
    if known.explicit_batch:
        return 1 << int(kinds.EXPLICIT_BATCH)
    return 1 << int(kinds.STRONGLY_TYPED) if known.strongly_typed == "asked" else 0


def configure(trt: Any, config: Any, settings: TensorRTSettings, known: Interface) -> None:
    """Tells a builder's configuration what the settings say."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace << 20)
    if known.levels:
        config.builder_optimization_level = settings.level
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if known.strongly_typed == "never" and settings.precision != "fp32":
        config.set_flag(getattr(trt.BuilderFlag, settings.precision.upper()))
