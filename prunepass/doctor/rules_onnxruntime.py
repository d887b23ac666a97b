"""What ONNX Runtime makes of a file, on its CPU execution provider."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from prunepass.doctor.kernels import IR_VERSIONS, OPSETS, Kernel, kernel, newest
from prunepass.doctor.rule import Place, Rule
from prunepass.doctor.target import TARGETS
from prunepass.doctor.view import Node

OWN_DOMAIN = "prunepass"
_LIBRARY = "operators.so"
_KNOWN = ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft",
          "com.microsoft.experimental", "com.microsoft.nchwc", "com.ms.internal.nhwc",
          "org.pytorch.aten")  # fmt: skip
_MEASURED = "measured with the packages 1.19 to 1.32"


def _minor(place: Place) -> int:
    newest_known = int(TARGETS["onnxruntime"].newest.split(".")[1])
    release = place.target.version.release
    return newest_known if release[0] > 1 else min(release[1], newest_known)


def _opset(place: Place) -> str | None:
    found, limit = place.view.opsets.get("", 0), newest(OPSETS, _minor(place))
    return f"opset {found}, it knows opsets up to {limit}" if found > limit else None


def _ir_version(place: Place) -> str | None:
    found, limit = place.view.ir_version, newest(IR_VERSIONS, _minor(place))
    return f"IR version {found}, it knows versions up to {limit}" if found > limit else None


def _foreign(place: Place) -> str | None:
    domain = place.node.domain
    return None if domain in (*_KNOWN, OWN_DOMAIN) else f"an operator of the domain {domain!r}"


def _own(place: Place) -> str | None:
    if place.node.domain != OWN_DOMAIN or place.view.path is None or _has_library(place):
        return None
    return f"no {_LIBRARY} beside the file"


def _has_library(place: Place) -> bool:
    """Whether the operators that a bundle brings lie beside the file."""
    path = place.view.path
    return path is not None and (path.parent / _LIBRARY).is_file()


def _step_by_step(place: Place) -> str | None:
    """The library that a bundle brings runs its scans, which stand in the file as functions."""
    return None if _has_library(place) else "one step after the other"


def _undefined(place: Place) -> str | None:
    node = place.node
    if node.domain or node.opset > newest(OPSETS, _minor(place)):
        return None
    if _schema(node.op, node.opset) is None:
        return f"opset {node.opset} has no operator {node.op}"
    return None


def _no_kernel(place: Place) -> str | None:
    node = place.node
    schema = None if node.domain else _schema(node.op, node.opset)
    if schema is None or node.op == "Constant" or _is_function(schema):
        return None
    if kernel(node.op, schema.since_version, _minor(place)) is None:
        return f"{node.op} of opset {schema.since_version}"
    return None


def _no_type(place: Place) -> str | None:
    found = _wrong_type(place)
    return None if found is None or found[1] == "float16" else f"{found[0]} is {found[1]}"


def _cast(place: Place) -> str | None:
    found = _wrong_type(place)
    return f"{found[0]} is float16" if found is not None and found[1] == "float16" else None


def _wrong_type(place: Place) -> tuple[str, str] | None:
    """A value of a node and its type, if no kernel takes it."""
    node = place.node
    schema = None if node.domain else _schema(node.op, node.opset)
    if schema is None or node.op == "Constant":
        return None
    row = kernel(node.op, schema.since_version, _minor(place))
    found = None if row is None else _mismatch(node, schema, row)
    if found is not None and found[1] != "bfloat16" and _is_function(schema):
        return None  # Its parts take its place; few of them know bfloat16.
    return found


def _mismatch(node: Node, schema: Any, row: Kernel) -> tuple[str, str] | None:
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for number, value in enumerate(values):
            if value is None or value.dtype is None or not formal:
                continue
            told = formal[min(number, len(formal) - 1)]
            allowed = row.types.get(told.type_str) or row.types.get(told.name)
            if allowed and value.dtype not in allowed:
                return value.name, value.dtype
    return None


@functools.cache
def _schema(op: str, opset: int) -> Any:
    """What ONNX says of an operator at an opset, None where there is none."""
    from onnx import defs

    try:
        schema = defs.get_schema(op, min(opset, defs.onnx_opset_version()), "")
    except defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _is_function(schema: Any) -> bool:
    """Whether ONNX defines it by other operators, which take its place where it has no kernel."""
    return bool(schema.has_function or schema.has_context_dependent_function)


def _outside(place: Place) -> str | None:
    for name in place.view.external:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            return f"weights in {name!r}"
    return None


def _missing(place: Place) -> str | None:
    path = place.view.path
    if path is None or _outside(place) is not None:
        return None
    for name in place.view.external:
        if not (path.parent / name).is_file():
            return f"no {name} beside it"
    return None


RULES: tuple[Rule, ...] = (
    Rule(
        name="ort-opset", target="onnxruntime", operators=(), condition=_opset, effect="fails",
        what="a file of a newer opset does not load",
        mend="export at an older opset, or a newer ONNX Runtime", source=_MEASURED,
    ),
    Rule(
        name="ort-ir-version", target="onnxruntime", operators=(), condition=_ir_version,
        effect="fails", what="a file of a newer ONNX format does not load",
        mend="set ir_version to the one it knows and save again, or a newer ONNX Runtime",
        source=_MEASURED,
    ),
    Rule(
        name="ort-domain", target="onnxruntime", operators=("*",), condition=_foreign,
        effect="fails", what="nobody has registered such an operator",
        mend="register its library in the session's options, or export without it",
        source="onnxruntime.ai/docs/reference/operators/add-custom-op.html",
    ),
    Rule(
        name="ort-own-operator", target="onnxruntime", operators=("*",), condition=_own,
        effect="fails", what="the sparse product is run by a library that a bundle brings",
        mend="keep the files of a bundle together, or compile it again on this machine",
        source="prunepass/backends/onnx_operator.py",
    ),
    Rule(
        name="ort-operator", target="onnxruntime", operators=("*",), condition=_undefined,
        effect="fails", what="there is no such operator at the file's opset",
        mend="export again at an opset that has it",
        source="github.com/onnx/onnx docs/Changelog.md, as installed",
    ),
    Rule(
        name="ort-kernel", target="onnxruntime", operators=("*",), condition=_no_kernel,
        effect="fails", what="the CPU execution provider has no kernel for it",
        mend="write it with other operators, or export at another opset",
        source="prunepass/doctor/onnxruntime_kernels.txt, " + _MEASURED,
    ),
    Rule(
        name="ort-kernel-type", target="onnxruntime", operators=("*",), condition=_no_type,
        effect="fails", what="the CPU execution provider has no kernel for this type",
        mend="cast around it, or export in float32",
        source="prunepass/doctor/onnxruntime_kernels.txt, " + _MEASURED,
    ),
    Rule(
        name="ort-float16", target="onnxruntime", operators=("*",), condition=_cast,
        effect="slow", what="the CPU execution provider casts to float32 and back around it",
        mend="float32 for processors, float16 for GPUs",
        source="prunepass/doctor/onnxruntime_kernels.txt; onnxruntime core/optimizer/"
        "insert_cast_transformer.cc",
    ),
    Rule(
        name="ort-scan", target="onnxruntime", operators=("Loop", "Scan"),
        condition=_step_by_step, effect="slow",
        what="its steps run one after the other, as a graph of their own",
        mend="a scan in chunks, written as matrix products; LinearAttention from opset 27 on",
        source="github.com/onnx/onnx/pull/7950: 10 to 50 times slower than a fused kernel",
    ),
    Rule(
        name="ort-weights-outside", target="onnxruntime", operators=(), condition=_outside,
        effect="fails", what="weights may lie in the folder of the file alone",
        mend="save the file again with its weights beside it",
        source="measured with the packages 1.30 to 1.32; a path outside is an attack elsewhere",
    ),
    Rule(
        name="ort-weights-missing", target="onnxruntime", operators=(), condition=_missing,
        effect="fails", what="the file does not load without its weights",
        mend="copy them along", source=_MEASURED,
    ),
)  # fmt: skip
