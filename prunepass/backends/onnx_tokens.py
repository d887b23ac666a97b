"""How operations that know the places of tokens are written in ONNX.

The scan becomes one `Scan`, along the first axis and with everything of a step inside. Of the forms
tried with ONNX Runtime's own operators (decay worked out beforehand, blocks of 14 to 50 tokens,
`LinearAttention`) none was faster, and eight pictures take two thirds of what a scan along the
second axis takes. The compiled operator takes a sixth of that; a session that has it calls it in
place of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prunepass.backends.onnx_scan import scan_by_doubling
from prunepass.ops import selective_scan, token_places

DOMAIN, SCAN_FUNCTION = "prunepass", "SelectiveScan"
_OPERANDS = ("x", "delta", "decay", "A", "B", "C", "D")


def translations(*, loops: bool = True) -> Mapping[Any, Callable[..., Any]]:
    """Operation -> what writes it, as `torch.onnx.export` takes it.

    Args:
        loops: Whether a scan may be a `Scan`.
    """
    return {
        selective_scan.SCAN: _scan if loops else scan_by_doubling,
        token_places.LINE: _line,
        token_places.GRID: _grid,
        token_places.REORDER: _reorder,
    }


def add_scan(model: Any, *, opset: int) -> None:
    """Gives an `onnx_ir.Model` the function that its scans call."""
    scan = _scan_function(opset)
    model.functions[scan.identifier()] = scan
    model.opset_imports[DOMAIN] = 1


def _scan_function(opset: int) -> Any:
    import onnx_ir
    from onnx import helper

    def node(op: str, inputs: str, output: str, **more: Any) -> Any:
        return helper.make_node(op, inputs.split(), [output], **more)

    def axes(name: str, axis: int) -> Any:
        return node("Constant", "", name, value_ints=[axis])

    step = helper.make_graph(
        [
            node("Mul", "decay_t rates", "exponent"),
            node("Exp", "exponent", "share"),
            node("Mul", "share before", "left"),
            node("Mul", "enter_t input_t", "entering"),
            node("Add", "left entering", "after"),
            node("MatMul", "read_t after", "found_t"),
        ],
        "step",
        [
            helper.make_empty_tensor_value_info(n)
            for n in ("before", "decay_t", "input_t", "enter_t", "read_t")
        ],
        [helper.make_empty_tensor_value_info(n) for n in ("after", "found_t")],
    )
    # Tokens first, then [B, 1, C], [B, S, 1] and [B, 1, S]; states are [B, S, C].
    nodes = [
        axes("two", 2), axes("three", 3),
        node("Mul", "delta x", "scaled"),
        node("Transpose", "A", "rates", perm=[1, 0]),
        *(
            part
            for source, axis, name in (
                ("decay", "two", "decays"), ("scaled", "two", "inputs"), ("B", "three", "enters"),
                ("C", "two", "reads"),
            )
            for part in (
                node("Transpose", source, f"{name}_first", perm=[1, 0, 2]),
                node("Unsqueeze", f"{name}_first {axis}", name),
            )
        ),
        node("Shape", "x", "images", start=0, end=1),
        node("Shape", "rates", "states"),
        node("Concat", "images states", "size", axis=0),
        node("ConstantOfShape", "size", "zeros"),
        node("CastLike", "zeros x", "start"),
        helper.make_node(
            "Scan", ["start", "decays", "inputs", "enters", "reads"], ["last", "found"],
            body=step, num_scan_inputs=4,
        ),
        node("Squeeze", "found two", "found_first"),
        node("Transpose", "found_first", "read", perm=[1, 0, 2]),
        node("Mul", "D x", "passed_by"),
        node("Add", "read passed_by", "y"),
    ]  # fmt: skip
    made = helper.make_function(
        DOMAIN, SCAN_FUNCTION, _OPERANDS, ["y"], nodes,
        [helper.make_opsetid("", opset)],
    )  # fmt: skip
    return onnx_ir.serde.deserialize_function(made)


def _scan(x: Any, delta: Any, decay: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    schema = OpSchema(
        SCAN_FUNCTION, DOMAIN, 1,
        inputs=[OpSchema.FormalParameter(name, "T") for name in _OPERANDS],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
    )  # fmt: skip
    return Op(Opset(DOMAIN, 1), SCAN_FUNCTION, schema)(x, delta, decay, A, B, C, D)


def _line(x: Any, weight: Any, bias: Any = None) -> Any:
    op = _opset()

    channels, _, width = weight.shape
    along = op.Transpose(x, perm=[0, 2, 1])
    made = op.Conv(along, weight, bias, group=channels, pads=[width - 1, 0])
    return op.Transpose(made, perm=[0, 2, 1])


def _grid(x: Any, weight: Any, bias: Any, width: int) -> Any:
    op = _opset()

    channels, size = weight.shape[0], weight.shape[2]
    rows = x.shape[1] // width
    along = op.Transpose(x, perm=[0, 2, 1])
    grid = op.Reshape(along, op.Constant(value_ints=[0, 0, rows, width]))
    made = op.Conv(grid, weight, bias, group=channels, pads=[size // 2] * 4)
    flat = op.Reshape(made, op.Constant(value_ints=[0, 0, rows * width]))
    return op.Transpose(flat, perm=[0, 2, 1])


def _reorder(x: Any, order: list[int]) -> Any:
    op = _opset()

    return op.Gather(x, op.Constant(value_ints=list(order)), axis=1)


def _opset() -> Any:
    from onnxscript import opset20

    return opset20
