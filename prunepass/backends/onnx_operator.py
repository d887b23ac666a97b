"""The sparse product for ONNX Runtime: an operator compiled with the bundle and loaded with it.

ONNX Runtime's own operators bring nothing: a Gather copies the rows that a MatMul then reads again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

import prunepass.kernels
from prunepass.errors import BackendError
from prunepass.kernels.native import compile_library
from prunepass.kernels.sparse_linear import GATED_LINEAR

FILE = "gated_linear.so"
_SOURCE = Path(prunepass.kernels.__path__[0]) / "gated_linear_onnx.cpp"
_OLDEST = (1, 18)
"""Of ONNX Runtime: the first whose operators may use its threads."""


def has_gated_linear(program: ExportedProgram) -> bool:
    """Whether a program holds sparse products."""
    return any(node.target is GATED_LINEAR for node in program.graph.nodes)


def build_operator(folder: Path) -> Path:
    """The operator, compiled into a folder by the system's C++ compiler.

    Raises:
        BackendError: No compiler is there, or it fails.
    """
    path = folder / FILE
    try:
        compile_library(_SOURCE, path)
    except OSError as error:
        raise BackendError(
            "cannot build the sparse operator for ONNX Runtime",
            found=str(error)[:300],
            fix="install g++, or --backend eager",
        ) from error
    return path


def register_operator(options: Any, folder: Path) -> None:
    """Makes a session know the operator of a folder, where there is one.

    Args:
        options: `onnxruntime.SessionOptions`.
        folder: Of an engine.

    Raises:
        BackendError: ONNX Runtime is too old, or the operator is of another machine.
    """
    path = folder / FILE
    if not path.is_file():
        return
    import onnxruntime

    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < _OLDEST:
        raise BackendError(
            "this ONNX Runtime is too old for sparse products",
            found=onnxruntime.__version__,
            fix="pip install -U onnxruntime",
        )
    try:
        options.register_custom_ops_library(str(path.resolve()))
    except Exception as error:
        raise BackendError(
            f"cannot load {FILE}",
            found=str(error).strip().splitlines()[0][:300],
            fix="build the bundle again on this machine",
        ) from error


def translations() -> dict[Any, Callable[..., Any]]:
    """How the exporter writes the operator down."""
    from onnx.defs import OpSchema
    from onnxscript import FLOAT
    from onnxscript.values import Op, Opset

    kinds = {"keep": OpSchema.AttrType.INT, "threshold": OpSchema.AttrType.FLOAT,
             "rows": OpSchema.AttrType.INT}  # fmt: skip
    schema = OpSchema(
        "GatedLinear", "prunepass", 1,
        inputs=[OpSchema.FormalParameter(name, "T") for name in ("x", "score", "weight")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[OpSchema.Attribute(name, kind) for name, kind in kinds.items()],
    )  # fmt: skip
    operator = Op(Opset("prunepass", 1), "GatedLinear", schema)

    def gated_linear(
        x: FLOAT, score: FLOAT, weight: FLOAT, keep: int, threshold: float, rows: int
    ) -> FLOAT:
        return operator(x, score, weight, keep=keep, threshold=threshold, rows=rows)

    return {GATED_LINEAR: gated_linear}
