"""Building a serialised TensorRT engine, by TensorRT's own builder or by torch-tensorrt.

Either way all of a program is one engine. torch-tensorrt could leave operations to PyTorch, but
what it saves then holds pickled objects, which no bundle here does.

Source: NVIDIA's TensorRT Python API reference (Builder, IBuilderConfig, OnnxParser);
torch-tensorrt, "Extracting a Raw TensorRT Engine" and "CompilationSettings Reference";
pytorch/TensorRT, py/torch_tensorrt/dynamo/_compiler.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from prunepass.backends import tensorrt_plugin
from prunepass.backends.tensorrt_settings import Profile, TensorRTSettings
from prunepass.backends.tensorrt_versions import check, configure, interface, network_flags
from prunepass.errors import BackendError

_TIMINGS = "timing.cache"


def build_plan(path: Path, settings: TensorRTSettings, inputs: Sequence[Profile]) -> bytes:
    """The engine of an ONNX file, serialised.

    Raises:
        BackendError: This TensorRT cannot build it.
    """
    import tensorrt as trt

    known = interface(trt.__version__)
    check(known, settings)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(network_flags(trt, known))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(str(path)):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BackendError(
            f"TensorRT {trt.__version__} cannot read {path.name}", found="; ".join(errors)[:300],
            fix=f"another --opset, up to {known.opset}",
        )  # fmt: skip
    config = builder.create_builder_config()
    configure(trt, config, settings, known)
    profile = builder.create_optimization_profile()
    for one in inputs:
        profile.set_shape(one.name, one.least, one.usual, one.most)
    config.add_optimization_profile(profile)
    with _timings(config, settings.folder):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(
            f"TensorRT {trt.__version__} cannot build {path.name}",
            found="its builder gave no engine; its log says more",
            fix="more --workspace, a smaller --profile, or --precision fp32",
        )
    return bytes(plan)


@contextlib.contextmanager
def _timings(config: Any, folder: Path) -> Any:
    """Timings of kernels that earlier builds took, and those of this one for later builds."""
    file = folder / _TIMINGS
    before = file.read_bytes() if file.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(before), ignore_mismatch=False)
    yield
    found = config.get_timing_cache()
    if found is not None:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = file.with_name(f"{file.name}.part")
        scratch.write_bytes(bytes(found.serialize()))
        scratch.replace(file)


def build_plan_by_torch(
    program: ExportedProgram, settings: TensorRTSettings, inputs: Sequence[Profile]
) -> bytes:
    """The engine of a program, serialised; all of it is one engine, or this fails.

    Raises:
        BackendError: torch-tensorrt cannot turn all of the program into one engine.
    """
    import torch_tensorrt

    if tensorrt_plugin.has_sparse_products(program):
        tensorrt_plugin.register()
    args, _ = program.example_inputs
    specs = [
        torch_tensorrt.Input(
            min_shape=one.least, opt_shape=one.usual, max_shape=one.most, dtype=x.dtype,
            name=one.name,
        )
        for one, x in zip(inputs, args, strict=True)
    ]  # fmt: skip
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    try:
        plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program, arg_inputs=specs, require_full_compilation=True, min_block_size=1,
            enabled_precisions={torch.float32, kinds[settings.precision]},
            disable_tf32=not settings.tf32, workspace_size=settings.workspace << 20,
            optimization_level=settings.level, truncate_double=True,
            timing_cache_path=str(settings.folder / _TIMINGS),
        )  # fmt: skip
    except Exception as error:
        raise BackendError(
            "torch-tensorrt cannot turn the whole program into one engine",
            found=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}",
            fix="--via onnx",
        ) from error
    return bytes(plan)
