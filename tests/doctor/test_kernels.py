"""The table of kernels says what the installed ONNX Runtime says of itself."""

from __future__ import annotations

import pytest

from prunepass.doctor.kernels import IR_VERSIONS, OPSETS, kernel, kernels, newest
from prunepass.doctor.target import TARGETS


def test_some_rows() -> None:
    assert len(kernels()) > 150
    add = kernel("Add", 14, 31)
    assert add is not None
    assert {"float32", "int64"} <= add.types["T"]
    assert "bfloat16" not in add.types["T"]
    assert kernel("Add", 15, 31) is None  # an open end is one version of the operator
    assert kernel("Erf", 10, 31) is not None  # within 9 to 12
    assert kernel("Nonesuch", 1, 31) is None
    assert (newest(OPSETS, 22), newest(OPSETS, 31), newest(IR_VERSIONS, 22)) == (22, 26, 10)
    assert (newest(OPSETS, 32), newest(OPSETS, 99), newest(IR_VERSIONS, 32)) == (28, 28, 14)


def test_against_the_installed_package() -> None:
    runtime = pytest.importorskip("onnxruntime")
    major, minor = (int(part) for part in runtime.__version__.split(".")[:2])
    if f"{major}.{minor}" > TARGETS["onnxruntime"].newest:
        pytest.skip(f"the table ends before onnxruntime {runtime.__version__}")
    state = runtime.capi._pybind_state
    theirs = {
        (d.op_name, d.version_range[0])
        for d in state.get_all_opkernel_def()
        if d.provider == "CPUExecutionProvider" and d.domain == ""
    }
    ours = {
        (name, row.first)
        for name, rows in kernels().items()
        for row in rows
        if row.minors[0] <= minor <= row.minors[1]
    }
    assert ours == theirs
