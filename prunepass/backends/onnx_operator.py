"""Operators of ours for ONNX Runtime, compiled with the bundle and loaded with it.

A sparse product cannot do without: a Gather copies the rows that a MatMul then reads again. A scan
can: it stands in the file as a function too, which is run where the compiled one is not there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.backends.onnx_gated import masked_product
from prunepass.errors import BackendError, first_line
from prunepass.kernels.native import FOR_ONNX, compiled
from prunepass.kernels.sparse_linear import GATED_LINEAR
from prunepass.ops.selective_scan import SCAN

FILE = "operators.so"
log = logging.getLogger(__name__)
_OLDEST = (1, 18)
"""Of ONNX Runtime: the first whose operators may use its threads."""


def add_operators(program: ExportedProgram, folder: Path) -> None:
    """Puts the compiled operators into a folder, if the program has use for them.

    Raises:
        BackendError: The program cannot do without, and no compiler is there, it fails, or what is
            to be computed is not of float32.
    """
    sparse = [node for node in program.graph.nodes if node.target is GATED_LINEAR]
    kinds = {node.meta["val"].dtype for node in sparse} - {torch.float32}
    if kinds:
        raise BackendError(
            "the sparse operator for ONNX Runtime computes in float32",
            found=f"sparse products of {', '.join(sorted(map(str, kinds)))}",
            fix="a model in float32, --backend aot_inductor, or --portable, which gains nothing",
        )
    needed = bool(sparse)
    if not needed and not any(_is_float_scan(node) for node in program.graph.nodes):
        return
    try:
        shutil.copyfile(compiled(FOR_ONNX), folder / FILE)
    except OSError as error:
        if not needed:
            log.info("scans run as ONNX writes them, which is slower: %s", error)
            return
        raise BackendError(
            "cannot build the sparse operator for ONNX Runtime",
            found=str(error)[:300],
            fix="install g++, or --backend eager",
        ) from error


def _is_float_scan(node: Node) -> bool:
    """Whether a node is a scan that there is a compiled one for."""
    return node.target is SCAN and node.meta["val"].dtype is torch.float32


def register_operator(options: Any, folder: Path) -> None:
    """Makes a session know the operator of a folder, where there is one.

    Args:
        options: `onnxruntime.SessionOptions`.
        folder: That the ONNX file lies in.

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
            f"this ONNX Runtime is too old for {FILE}",
            found=onnxruntime.__version__,
            fix="pip install -U onnxruntime",
        )
    try:
        options.register_custom_ops_library(str(path.resolve()))
    except Exception as error:
        raise BackendError(
            f"cannot load {FILE}",
            found=first_line(error),
            fix="build the bundle again on this machine; scans alone also run without the file",
        ) from error


def translations(*, compiled: bool) -> dict[Any, Callable[..., Any]]:
    """How the exporter writes a sparse product down.

    Args:
        compiled: Whether as the operator of ours, else in ONNX's own.
    """
    if not compiled:
        return {GATED_LINEAR: masked_product}
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
