"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.backends.onnx_export import export
from prunepass.backends.onnx_legal import Target
from prunepass.backends.onnx_operator import FILE as OPERATORS
from prunepass.backends.onnx_operator import add_operators, register_operator
from prunepass.backends.onnx_precision import Half
from prunepass.errors import BackendError, PrunepassError, first_line

_FILE = "model.onnx"
_SINGLE_FILE = 256 * 2**20
"""Bytes of weights up to which they lie in the file itself, above in `model.onnx.data`."""


@dataclass(frozen=True)
class OnnxEngine:
    """An ONNX Runtime session.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
        path: The ONNX file.
    """

    session: Any
    path: Path | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        first = self.session.get_providers()[0]
        gpu = first.startswith(("CUDA", "Tensorrt", "NvTensorRt"))
        return torch.device("cuda", 0) if gpu else torch.device("cpu")

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [i.name for i in self.session.get_inputs()]
        if len(names) != len(inputs):
            raise BackendError(
                "wrong number of inputs for an engine",
                found=f"{len(inputs)}, it takes {len(names)}: {', '.join(names)}",
                fix="as many tensors as the model was captured with",
            )
        feed = {n: x.detach().cpu().numpy() for n, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(y) for y in self.session.run(None, feed))


@dataclass(frozen=True)
class OnnxBackend:
    """Exports with `torch.onnx`, runs with ONNX Runtime.

    Attributes:
        opset: ONNX operator set of the file, 17 to 25.
        target: Which runtime the file is for; ONNX Runtime runs those for TensorRT too.
        half: Precision of products, see `onnx_precision`; None for that of the program.
        threads: Threads of a session, None for one a core.
        providers: Execution providers, in order of preference.
        portable: Nothing compiled is put beside the file: scans are written out where they stand,
            and sparse products read all of their weight, see `onnx_gated`.
        mapped: Weights are read where they lie in their file, which all sessions of it share,
            instead of a copy a session, packed for products of several rows.
    """

    opset: int = 20
    target: Target = "onnxruntime"
    half: Half | None = None
    threads: int | None = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    portable: bool = False
    mapped: bool = False
    name: str = "onnx"

    def unavailable(self) -> str | None:
        """None, or which package is missing."""
        return not_installed("onnx", "onnxscript", "onnxruntime")

    def build(self, program: ExportedProgram, folder: Path) -> OnnxEngine:
        """The program as `model.onnx`, in a session; large weights lie in `model.onnx.data`.

        Raises:
            BackendError: A package is missing, or the export failed.
        """
        self.write(program, folder)
        return self.load(folder)

    def write(self, program: ExportedProgram, folder: Path) -> None:
        """The files of `build` without a session.

        Raises:
            BackendError: A package is missing, or the export failed.
        """
        reason = not_installed("onnx", "onnxscript")
        if reason:
            raise BackendError("cannot build an ONNX engine", found=reason, fix="--backend eager")
        path = folder / _FILE
        # A session of an earlier build reads its weights where they lie: they stay, without a name.
        for old in (path, path.with_name(f"{_FILE}.data"), folder / OPERATORS):
            old.unlink(missing_ok=True)
        plain = self.portable or self.target == "tensorrt"
        if not plain:
            add_operators(program, folder)
        try:
            large = sum(x.nbytes for x in program.state_dict.values()) > _SINGLE_FILE
            # One file is held in memory twice while it is written, and cannot exceed 2 GiB.
            made = export(
                program, opset=self.opset, target=self.target, half=self.half, inline=plain
            )
            made.save(str(path), external_data=large)
        except PrunepassError:
            raise
        except Exception as error:
            raise BackendError(
                "torch.onnx could not export the program",
                found=f"{type(error).__name__}: {first_line(error)}",
                fix="another opset, or --backend aot_inductor",
            ) from error

    def load(
        self, folder: Path, *, profile: Path | None = None, optimised: Path | None = None
    ) -> OnnxEngine:
        """The session of the ONNX file in a folder, or of FOLDER.onnx where there is no folder.

        Args:
            folder: What `build` was given.
            profile: Where the session's profile begins to be written, None for none.
            optimised: Where the graph is written as ONNX Runtime has optimised it.

        Raises:
            BackendError: onnxruntime is missing, or refuses the file.
        """
        path = folder / _FILE if folder.is_dir() else folder.with_name(f"{folder.name}.onnx")
        session = self._session(str(path), folder, path, profile=profile, optimised=optimised)
        return OnnxEngine(session, path)

    def load_bytes(self, model: bytes, folder: Path) -> OnnxEngine:
        """The session of a model in memory whose other files lie in a folder.

        Raises:
            BackendError: onnxruntime is missing, or refuses the model.
        """
        return OnnxEngine(self._session(model, folder, folder / _FILE), None)

    def _session(
        self,
        model: str | bytes,
        folder: Path,
        path: Path,
        *,
        profile: Path | None = None,
        optimised: Path | None = None,
    ) -> Any:
        if importlib.util.find_spec("onnxruntime") is None:
            raise BackendError(
                "cannot run an ONNX engine",
                found="the package onnxruntime is not installed",
                fix="pip install onnxruntime, or onnxruntime-gpu; not both",
            )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        if self.mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if isinstance(model, bytes):
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, str(folder))
        register_operator(options, path.parent)
        try:
            return onnxruntime.InferenceSession(model, options, providers=list(self.providers))
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime refuses {path.name}",
                found=first_line(error),
                fix="build the engine again",
            ) from error


def not_installed(*packages: str) -> str | None:
    """None, or a sentence on the first of some packages that is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed: pip install 'prunepass[onnx]'"
    return None
