"""Which kernels ONNX Runtime has on a processor, by version: `onnxruntime_kernels.txt`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("onnxruntime_kernels.txt")
_TYPES = {
    "B": "bool", "b": "bfloat16", "d": "float64", "f": "float32", "h": "float16", "i1": "int8",
    "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16", "u4": "uint32",
    "u8": "uint64", "s": "string",
}  # fmt: skip
OPSETS = {19: 21, 20: 21, 21: 22, 22: 22, 23: 23, 24: 25, 25: 26, 32: 28}
"""Minor of ONNX Runtime 1.x -> the newest opset it loads; later ones as the last. Measured with
each package: a file of one Relu at that opset loads, one of the next does not."""
IR_VERSIONS = {19: 10, 23: 11, 24: 13, 32: 14}
"""Minor -> the newest version of the ONNX format it loads, measured in the same way."""


@dataclass(frozen=True)
class Kernel:
    """Kernels of one version of an operator.

    Attributes:
        first: The version of the operator they are for.
        last: The last such version; None where they are for `first` alone.
        minors: First and last minor of ONNX Runtime 1.x that has them.
        types: Type variable or input -> types.
    """

    first: int
    last: int | None
    minors: tuple[int, int]
    types: Mapping[str, frozenset[str]]


@functools.cache
def kernels() -> Mapping[str, tuple[Kernel, ...]]:
    """Operator of the default domain -> its kernels."""
    found: dict[str, list[Kernel]] = {}
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, versions, minors, *rest = line.split(" ")
        first, last = versions.split("-")
        low, high = minors.split("-")
        types = {
            variable: frozenset(_TYPES[t] for t in names.split(",") if t)
            for variable, _, names in (part.partition("=") for part in "".join(rest).split(";"))
            if variable
        }
        found.setdefault(name, []).append(
            Kernel(int(first), int(last) if last else None, (int(low), int(high)), types)
        )
    return {name: tuple(rows) for name, rows in found.items()}


def kernel(op: str, since: int, minor: int) -> Kernel | None:
    """The kernels for a version of an operator, None where there are none.

    Args:
        op: An operator of the default domain.
        since: The version of the operator: the opset that defined it as it is.
        minor: Of ONNX Runtime 1.x.
    """
    for row in kernels().get(op, ()):
        low, high = row.minors
        if low <= minor <= high and (
            row.first == since if row.last is None else row.first <= since <= row.last
        ):
            return row
    return None


def newest(table: Mapping[int, int], minor: int) -> int:
    """The entry for a minor: its own, or that of the last one before it."""
    return table[max(m for m in table if m <= minor)]
