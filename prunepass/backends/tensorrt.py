"""TensorRT: an ONNX file that is legal there, and an engine of it that fits one machine.

A folder holds `model.onnx`, what every engine can be built from again; `golden.safetensors`, inputs
with the outputs that are right; `engine.json`, how the engine is built and what it is bound to; and
`model.plan`, the engine, or, where there is no TensorRT, `trtexec.txt`. The folder is never changed
afterwards: where it does not fit the machine, an engine is built into the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.agreement import ENGINE, largest_difference, random_inputs
from prunepass.backends import tensorrt_command
from prunepass.backends.eager import EagerEngine
from prunepass.backends.onnx import OnnxBackend, OnnxEngine, not_installed
from prunepass.backends.protocol import Engine
from prunepass.backends.tensorrt_build import build_plan, build_plan_by_torch
from prunepass.backends.tensorrt_engine import TensorRTEngine, UnbuiltEngine, fingerprint
from prunepass.backends.tensorrt_settings import TensorRTSettings, profiles
from prunepass.errors import BackendError, UsageError

MODEL, PLAN, RECORD, GOLDEN = "model.onnx", "model.plan", "engine.json", "golden.safetensors"
SCHEMA = 1
TOLERANCE = {"fp32": ENGINE.single, "fp16": ENGINE.half, "bf16": 5e-2}
"""Largest relative difference of outputs that a precision explains."""
_log = logging.getLogger("prunepass")


@dataclass(frozen=True)
class TensorRTBackend:
    """Builds engines with TensorRT, or with torch-tensorrt.

    Attributes:
        settings: How.
    """

    settings: TensorRTSettings = field(default_factory=TensorRTSettings)
    name: str = "tensorrt"

    @property
    def portable(self) -> bool:
        """Its files call no operator of ours, see `OnnxBackend.portable`."""
        return True

    def unavailable(self) -> str | None:
        """None, or which package is missing.

        Without TensorRT the ONNX file is still written, and checked in ONNX Runtime, which has no
        products of bfloat16.
        """
        why = missing("tensorrt")
        if self.settings.via == "torch":
            why = missing("torch_tensorrt")
        if why and (self.settings.via == "torch" or self.settings.precision == "bf16"):
            return why
        return not_installed("onnx", "onnxscript", *(["onnxruntime"] if why else []))

    @classmethod
    def of(cls, folder: Path) -> TensorRTBackend:
        """The backend with the settings that a folder was built with.

        Raises:
            BackendError: The folder is damaged.
        """
        return cls(read_record(folder)[0])

    def build(self, program: ExportedProgram, folder: Path) -> Engine:
        """The engine of a program, or the place of one where TensorRT is missing.

        Raises:
            BackendError: The program has no legal ONNX, or TensorRT cannot build it.
        """
        settings = self.settings
        half = None if settings.precision == "fp32" else settings.precision
        OnnxBackend(opset=settings.opset, target="tensorrt", half=half).write(program, folder)
        _write_golden(program, folder)
        sizes = profiles(folder / MODEL, settings)
        record: dict[str, Any] = {"schema": SCHEMA, "settings": settings.to_dict()}
        why = missing("tensorrt")
        if why is None:
            kept = _cached(folder, settings, fingerprint())
            if not kept.is_file() and settings.via == "torch":
                _keep(kept, build_plan_by_torch(program, settings, sizes))
            elif not kept.is_file():
                _keep(kept, build_plan(folder / MODEL, settings, sizes))
            (folder / PLAN).write_bytes(kept.read_bytes())
        else:
            text = tensorrt_command.commands(settings, sizes, model=MODEL, engine=PLAN)
            (folder / tensorrt_command.FILE).write_text(text, encoding="utf-8")
        record |= {"built": why is None, "fingerprint": None if why else fingerprint()}
        (folder / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        return self.load(folder)

    def load(self, folder: Path) -> Engine:
        """The engine of a folder; built anew where it is bound to another machine.

        Raises:
            BackendError: The folder is damaged, or the engine built here says something else.
        """
        settings, built_on = read_record(folder, cache=self.settings.cache)
        tolerance = TOLERANCE[settings.precision]
        why = missing("tensorrt")
        if why is not None:
            commands = folder / tensorrt_command.FILE
            return UnbuiltEngine(folder / MODEL, why, commands, tolerance)
        here = fingerprint()
        plan = folder / PLAN
        if built_on == here and plan.is_file():
            return TensorRTEngine.of(plan.read_bytes(), plan, tolerance=tolerance)
        kept = _cached(folder, settings, here)
        if kept.is_file():
            return TensorRTEngine.of(kept.read_bytes(), kept, tolerance=tolerance)
        _log.warning("building the engine of %s anew: %s", folder, moved(built_on, here))
        made = build_plan(folder / MODEL, settings, profiles(folder / MODEL, settings))
        engine = TensorRTEngine.of(made, kept, tolerance=tolerance)
        check_golden(engine, folder / GOLDEN, tolerance)
        _keep(kept, made)
        return engine


def missing(package: str) -> str | None:
    """None, or a sentence that says how to get TensorRT or torch-tensorrt, or that no GPU is there.

    Args:
        package: `tensorrt` or `torch_tensorrt`.
    """
    names = {"tensorrt": "tensorrt", "torch_tensorrt": "torch-tensorrt"}
    if importlib.util.find_spec(package) is None:
        return (
            f"the package {names[package]} is not installed: pip install {names[package]}, "
            "from NVIDIA's own package index where yours lacks it"
        )
    if not torch.cuda.is_available():
        return "TensorRT needs an NVIDIA GPU, and none is here"
    return None


def moved(before: dict[str, str] | None, here: dict[str, str]) -> str:
    """Why an engine does not fit this machine, in a few words."""
    if before is None:
        return "it was written where TensorRT was missing"
    return ", ".join(
        f"{name} {before.get(name, 'unknown')} -> {now}"
        for name, now in here.items()
        if before.get(name) != now
    )


def engine_key(folder: Path, settings: TensorRTSettings, here: dict[str, str]) -> str:
    """What an engine in the cache is called: a digest of all that it depends on."""
    digest = hashlib.sha256(json.dumps([settings.to_dict(), here], sort_keys=True).encode())
    for file in sorted(folder.glob(f"{MODEL}*")):
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _cached(folder: Path, settings: TensorRTSettings, here: dict[str, str]) -> Path:
    return settings.folder / f"{engine_key(folder, settings, here)}.plan"


def _keep(path: Path, plan: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.part")
    scratch.write_bytes(plan)
    scratch.replace(path)


def onnx_engine(folder: Path, *, threads: int | None = None) -> OnnxEngine:
    """The ONNX file of a folder in ONNX Runtime, to check it where there is no TensorRT."""
    return OnnxBackend(threads=threads).load(folder)


def check_golden(engine: Engine, path: Path, tolerance: float) -> float:
    """The largest relative difference of an engine to the outputs stored with it.

    Raises:
        BackendError: It is more than its precision explains, or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BackendError(
            f"cannot read {path.name}", found=str(error)[:200], fix="compile again"
        ) from error
    inputs = [stored[name] for name in sorted(stored) if name.startswith("input")]
    wanted = [stored[name] for name in sorted(stored) if name.startswith("output")]
    worst = largest_difference(engine(*inputs), wanted)
    if not worst <= tolerance:
        raise BackendError(
            "the engine says something else than its model",
            found=f"a relative difference of {worst:.1e}, at most {tolerance:.0e} is right",
            fix="--precision fp32, or another TensorRT",
        )
    return worst


def _write_golden(program: ExportedProgram, folder: Path) -> None:
    """Inputs and outputs of a program, for engines that are built later and elsewhere."""
    from safetensors.torch import save_file

    inputs = random_inputs(program.example_inputs[0], seed=1)
    outputs = EagerEngine.of(program)(*inputs)
    named: dict[str, Tensor] = {}
    for kind, tensors in (("input", inputs), ("output", outputs)):
        named |= {f"{kind}_{i:03}": x.detach().contiguous().clone() for i, x in enumerate(tensors)}
    save_file(named, folder / GOLDEN)


def read_record(
    folder: Path, *, cache: str | None = None
) -> tuple[TensorRTSettings, dict[str, str] | None]:
    """How the engine of a folder is built, and what it is bound to, None if it is not built.

    Raises:
        BackendError: The record is missing, damaged, or of another version.
    """
    path = folder / RECORD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}, this version reads {SCHEMA}")
        settings = TensorRTSettings.from_dict(data["settings"], cache=cache)
        built_on = data["fingerprint"]
        if not (built_on is None or isinstance(built_on, dict)):
            raise ValueError("fingerprint")
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise BackendError(
            f"cannot load {path.name}", found=str(error).splitlines()[0][:200], fix="compile again"
        ) from error
    return settings, built_on
