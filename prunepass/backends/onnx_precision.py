"""Matrix products, convolutions and attention in half precision, everything else in fp32.

Types are written into the graph, which is the only way to say them since TensorRT 11. What decides
which tokens stay, norms and sums of merges keep fp32.

Source: "Migrating from TensorRT 10.x to 11.x", NVIDIA's TensorRT documentation (strong typing).
"""

from __future__ import annotations

from typing import Any, Literal

from prunepass.backends.onnx_opset import constant

Half = Literal["fp16", "bf16"]
_TYPES = {"fp16": 10, "bf16": 16}
_FLOAT = 1
_BETWEEN = ("Add", "Mul", "Div", "Reshape", "Identity")
"""What may stand between the product of queries and keys and its softmax."""


def halve(model: Any, precision: Half) -> int:
    """Casts in front of and behind each product of an `onnx_ir.Model`, in place; how many."""
    import onnx_ir

    done = 0
    for node in list(model.graph):
        if not _is_heavy(node):
            continue
        tape = onnx_ir.tape.Tape()
        inputs = [
            x if x is None else tape.op("Cast", [x], attributes={"to": _TYPES[precision]})
            for x in node.inputs
        ]
        attributes = {name: held.value for name, held in node.attributes.items()}
        (made,) = tape.op_multi_out(node.op_type, inputs, attributes=attributes, num_outputs=1)
        back = tape.op("Cast", [made], attributes={"to": _FLOAT})
        back.name = node.outputs[0].name
        onnx_ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], list(tape.nodes), list(node.outputs), [back]
        )
        done += 1
    return done


def _is_heavy(node: Any) -> bool:
    """Whether a node is a product with weights, or one of attention."""
    if node.op_type in ("Gemm", "Conv"):
        return True
    if node.op_type == "Attention":
        return len(node.outputs) == 1
    if node.op_type != "MatMul":
        return False
    weights = any(constant(x) is not None for x in node.inputs)
    return weights or _from_softmax(node) or _to_softmax(node)


def _from_softmax(node: Any) -> bool:
    maker = node.inputs[0].producer()
    return maker is not None and maker.op_type == "Softmax"


def _to_softmax(node: Any, depth: int = 4) -> bool:
    for use in node.outputs[0].uses():
        user = use.node
        if user.op_type == "Softmax":
            return True
        if depth and user.op_type in _BETWEEN and _to_softmax(user, depth - 1):
            return True
    return False
