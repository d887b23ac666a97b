"""ONNX that is legal where it is to run: lowered operator by operator, then checked.

A file for TensorRT holds no operator whose shape depends on data, no loop, no TopK of many, no
scatter that adds up, and at opset 17 no 64-bit arithmetic and no operator TensorRT 8 lacks. Scans
are lowered where they are exported, see `onnx_scan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from prunepass.backends.onnx_integers import NARROW
from prunepass.backends.onnx_opset import OPSET_17, Lowering, attribute, constant
from prunepass.backends.onnx_scatter import one_hot_sum
from prunepass.backends.onnx_tensorrt_parts import ATTENTION, PARTS, RMS_NORM
from prunepass.backends.onnx_topk import LARGEST_K, rank_by_counting
from prunepass.errors import BackendError, UsageError

Target = Literal["onnxruntime", "tensorrt"]
OLDEST, EXPORTED, WITH_ATTENTION, NEWEST = 17, 18, 23, 25
"""Opsets: the lowest we write, the lowest the exporter writes, the first in which attention, and a
norm by the mean square, are one operator, and the highest that both write."""

_TENSORRT: Mapping[str, Lowering] = MappingProxyType(
    {"TopK": rank_by_counting, "ScatterElements": one_hot_sum}
)
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("NonZero", "Unique", "Compress", "NonMaxSuppression"),
                        "its shape depends on data"),
        **dict.fromkeys(("Loop", "Scan", "If", "SequenceMap"), "it runs one step after the other"),
        **dict.fromkeys(("SequenceConstruct", "SequenceAt", "SplitToSequence", "Optional"),
                        "it is no tensor"),
    }
)  # fmt: skip
"""Operators that a file for TensorRT does not hold, and why."""
_IR = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
"""Version of the file format that came with an opset; readers refuse formats newer than they are.

Source: ONNX, docs/Versioning.md.
"""


def check_opset(opset: int) -> None:
    """Nothing, if files of an opset can be written.

    Raises:
        UsageError: They cannot.
    """
    if not OLDEST <= opset <= NEWEST:
        raise UsageError(
            f"ONNX files of opset {opset} are not written", found=f"opset {opset}",
            fix=f"an opset from {OLDEST} to {NEWEST}",
        )  # fmt: skip


def legalise(model: Any, *, opset: int, target: Target) -> bool:
    """Lowers an `onnx_ir.Model` in place to what its target reads; whether there was any need.

    Args:
        model: Exported at `opset`, or at `EXPORTED` where that is higher.
        opset: Operator set of the file.
        target: Which runtime the file is for.

    Raises:
        BackendError: An operator has no form that is legal there.
    """
    tables = _tables(opset, target)
    for table in tables:
        _lower(model.graph, table)
    model.opset_imports[""] = opset
    if opset in _IR and target == "tensorrt":
        model.ir_version = _IR[opset]
    found = illegal(model, opset=opset, target=target)
    if found:
        raise BackendError(
            f"no ONNX of opset {opset} for {target} says what the program says",
            found="; ".join(found[:3]),
            fix="another opset, or --backend aot_inductor",
        )
    return bool(tables)


def _tables(opset: int, target: Target) -> Sequence[Mapping[str, Lowering]]:
    found: list[Mapping[str, Lowering]] = []
    if target == "tensorrt":
        found.append(_TENSORRT)
        if opset == OLDEST:
            found += [PARTS, NARROW]
        if opset >= WITH_ATTENTION:
            found.append(RMS_NORM)
    if opset == OLDEST:
        found.append(OPSET_17)
    if opset >= WITH_ATTENTION:
        found.append(ATTENTION)
    return found


def _lower(graph: Any, table: Mapping[str, Lowering]) -> None:
    import onnx_ir

    for node in list(graph):
        lowering = table.get(node.op_type) if node.domain == "" else None
        if lowering is None:
            continue
        tape = onnx_ir.tape.Tape()
        made = lowering(tape, node)
        if made is None:
            continue
        for old, new in zip(node.outputs, made, strict=True):
            new.name = old.name
        onnx_ir.convenience.replace_nodes_and_values(
            graph, node, [node], list(tape.nodes), list(node.outputs), list(made)
        )


def illegal(model: Any, *, opset: int, target: Target) -> list[str]:
    """What an `onnx_ir.Model` holds that is not legal for a target, one sentence each."""
    from onnx import defs

    found = []
    for node in model.graph:
        if node.domain != "":
            why = "an operator of our own" if target == "tensorrt" else None
        else:
            try:
                schema = defs.get_schema(node.op_type, opset)
            except defs.SchemaError:
                schema = None
            why = _strange(node, schema) or (_refused(node) if target == "tensorrt" else None)
            if why is None and target == "tensorrt" and opset == OLDEST and node.op_type in PARTS:
                why = "TensorRT 8 has no such operator"
        if why is not None:
            found.append(f"{node.op_type} ({node.name}): {why}")
    return found


def _strange(node: Any, schema: Any) -> str | None:
    """Why a node is none of its opset."""
    if schema is None or schema.deprecated:
        return "its opset has no such operator"
    unknown = [name for name in node.attributes if name not in schema.attributes]
    if unknown:
        return f"its opset has no attribute {unknown[0]}"
    if len(node.inputs) > schema.max_input:
        return f"its opset takes {schema.max_input} inputs"
    return None


def _refused(node: Any) -> str | None:
    if node.op_type in _REFUSED:
        return _REFUSED[node.op_type]
    if node.op_type == "TopK":
        k = constant(node.inputs[1])
        if k is None or int(k.reshape(())) > LARGEST_K:
            return f"it takes a constant number, at most {LARGEST_K}"
    if node.op_type.startswith("Scatter") and attribute(node, "reduction", "none") != "none":
        return f"it forms a {attribute(node, 'reduction', 'none')}"
    return None
