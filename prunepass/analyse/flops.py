"""Counting multiply-accumulates (MACs) of a program by written formulas. 1 MAC = 2 FLOPs.

Counted: linear layers, matrix products, convolutions, attention (fused or written out), also what
a scoring rule computes. Not counted, as is usual: biases, norms, activations, softmax,
additions, gathers.

A selective scan of B examples, T tokens, C channels and S states has 3 B T C S + B T C: one
multiplication to decay each state, one product and addition for what enters it, one for reading it,
one a channel for what is passed by. Exponentials are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.graph import meta
from prunepass.kernels.sparse_linear import GATED_LINEAR
from prunepass.ops.selective_scan import SCAN
from prunepass.ops.token_places import GRID, LINE

Shape = tuple[int, ...]
ShapeOf = Callable[[Node], Shape]
_aten = torch.ops.aten


def macs(
    program: ExportedProgram, *, batch: int = 1, sizes: Mapping[str, int] | None = None
) -> int:
    """Multiply-accumulates of one run.

    Args:
        program: Any program.
        batch: What its dynamic sizes are taken as, where the batch is the only one.
        sizes: What they are taken as, by symbol, instead.
    """
    taken = batch if sizes is None else sizes
    return count(program.graph.nodes, lambda node: meta.concrete_shape(node, taken) or ())


def count(nodes: Iterable[Node], shape_of: ShapeOf) -> int:
    """Multiply-accumulates of nodes, with shapes as `shape_of` tells them."""
    return sum(node_macs(node, shape_of) for node in nodes)


def node_macs(node: Node, shape_of: ShapeOf) -> int:
    """Multiply-accumulates of one node; 0 for what is not counted."""
    if node.op != "call_function":
        return 0
    formula = _FORMULAS.get(node.target)
    return 0 if formula is None else formula(node, shape_of)


def _linear(node: Node, shape_of: ShapeOf) -> int:
    return prod(shape_of(_operand(node, 0))) * shape_of(_operand(node, 1))[0]


def _gated_linear(node: Node, shape_of: ShapeOf) -> int:
    *lead, inputs = shape_of(_operand(node, 0))
    keep, rows = node.args[3], node.args[5]
    assert isinstance(keep, int)
    assert isinstance(rows, int)
    read = keep if prod(lead) <= rows else inputs
    return prod(lead) * read * shape_of(_operand(node, 2))[1]


def _matmul(node: Node, shape_of: ShapeOf) -> int:
    left = shape_of(_operand(node, 0))
    return prod(shape_of(node)) * left[-1]


def _addmm(node: Node, shape_of: ShapeOf) -> int:
    left = shape_of(_operand(node, 1))
    return prod(shape_of(node)) * left[-1]


def _convolution(node: Node, shape_of: ShapeOf) -> int:
    weight = shape_of(_operand(node, 1))
    return prod(shape_of(node)) * prod(weight[1:])


def _transposed_convolution(node: Node, shape_of: ShapeOf) -> int:
    weight = shape_of(_operand(node, 1))
    return prod(shape_of(_operand(node, 0))) * prod(weight[1:])


def _attention(node: Node, shape_of: ShapeOf) -> int:
    query, key, value = (shape_of(_operand(node, i)) for i in range(3))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _scan(node: Node, shape_of: ShapeOf) -> int:
    return prod(shape_of(_operand(node, 0))) * (3 * shape_of(_operand(node, 3))[1] + 1)


def _token_convolution(node: Node, shape_of: ShapeOf) -> int:
    return prod(shape_of(_operand(node, 0))) * prod(shape_of(_operand(node, 1))[1:])


def _einsum(node: Node, shape_of: ShapeOf) -> int:
    equation: Any = node.args[0]
    operands: Any = node.args[1]
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "..." in equation or len(terms) != 2:
        return 0
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        sizes.update(zip(term, shape_of(operand), strict=True))
    return prod(sizes.values())


def _operand(node: Node, index: int) -> Node:
    operand = node.args[index]
    assert isinstance(operand, Node)
    return operand


_FORMULAS: dict[Any, Callable[[Node, ShapeOf], int]] = {
    _aten.linear.default: _linear,
    GATED_LINEAR: _gated_linear,
    _aten.matmul.default: _matmul,
    _aten.mm.default: _matmul,
    _aten.bmm.default: _matmul,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
    _aten.einsum.default: _einsum,
    _aten.conv1d.default: _convolution,
    _aten.conv2d.default: _convolution,
    _aten.conv2d.padding: _convolution,
    _aten.conv3d.default: _convolution,
    _aten.conv_transpose2d.input: _transposed_convolution,
    _aten.convolution.default: _convolution,
    _aten.scaled_dot_product_attention.default: _attention,
    SCAN: _scan,
    LINE: _token_convolution,
    GRID: _token_convolution,
}
