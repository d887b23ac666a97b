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
from typing import Any, NamedTuple

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

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
    return count(read_nodes(program.graph), lambda node: meta.concrete_shape(node, taken) or ())


def read_nodes(graph: Graph) -> list[Node]:
    """The nodes that lead to an output; what nobody reads no engine computes."""
    seen = set(graph.find_nodes(op="output"))
    open_ = list(seen)
    while open_:
        for node in open_.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                open_.append(node)
    return [node for node in graph.nodes if node in seen]


def count(nodes: Iterable[Node], shape_of: ShapeOf) -> int:
    """Multiply-accumulates of nodes, with shapes as `shape_of` tells them."""
    return sum(node_macs(node, shape_of) for node in nodes)


def node_macs(node: Node, shape_of: ShapeOf) -> int:
    """Multiply-accumulates of one node; 0 for what is not counted."""
    formula = _formula(node)
    return 0 if formula is None else formula.macs(node, shape_of)


def node_kind(node: Node) -> str:
    """`linear`, `convolution`, `attention`, `scan`, `product`; nothing for what is not counted."""
    formula = _formula(node)
    return "" if formula is None else formula.kind


def _formula(node: Node) -> _Formula | None:
    return _FORMULAS.get(node.target) if node.op == "call_function" else None


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
    if len(node.args) > 6 and node.args[6] is True:  # of aten.convolution: whether transposed
        return _transposed_convolution(node, shape_of)
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
    """Operands are contracted from left to right, as torch does without a better order."""
    equation: Any = node.args[0]
    operands: Any = node.args[1]
    left, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:  # then letters that stand once are left
        result = "".join(letter for letter in left if left.count(letter) == 1)
    shapes = [shape_of(operand) for operand in operands]
    terms = [_spelled(t, len(shape)) for t, shape in zip(left.split(","), shapes, strict=True)]
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    kept = set(result) | {letter for letter in sizes if letter.isdigit()}
    have, total = set(terms[0]), 0
    for place, term in enumerate(terms[1:], 1):
        total += prod(sizes[letter] for letter in have | set(term))
        later = kept.union(*terms[place + 1 :])
        have = (have | set(term)) & later
    return total


def _spelled(term: str, rank: int) -> str:
    """A term of an einsum with a digit for each axis of its dots, counted from the right."""
    named = len(term.replace(".", ""))
    return term.replace("...", "".join(str(n) for n in reversed(range(rank - named))))


def _operand(node: Node, index: int) -> Node:
    operand = node.args[index]
    assert isinstance(operand, Node)
    return operand


class _Formula(NamedTuple):
    """How the multiply-accumulates of an operation are counted, and what kind it is."""

    kind: str
    macs: Callable[[Node, ShapeOf], int]


_PRODUCT = _Formula("product", _matmul)
_CONVOLUTION = _Formula("convolution", _convolution)
_TRANSPOSED = _Formula("convolution", _transposed_convolution)
_TOKEN_CONVOLUTION = _Formula("convolution", _token_convolution)
_ATTENTION = _Formula("attention", _attention)
_FORMULAS: dict[Any, _Formula] = {
    _aten.linear.default: _Formula("linear", _linear),
    GATED_LINEAR: _Formula("linear", _gated_linear),
    _aten.matmul.default: _PRODUCT,
    _aten.mm.default: _PRODUCT,
    _aten.bmm.default: _PRODUCT,
    _aten.mv.default: _PRODUCT,
    _aten.dot.default: _PRODUCT,
    _aten.addmm.default: _Formula("product", _addmm),
    _aten.baddbmm.default: _Formula("product", _addmm),
    _aten.einsum.default: _Formula("product", _einsum),
    _aten.conv1d.default: _CONVOLUTION,
    _aten.conv1d.padding: _CONVOLUTION,
    _aten.conv2d.default: _CONVOLUTION,
    _aten.conv2d.padding: _CONVOLUTION,
    _aten.conv3d.default: _CONVOLUTION,
    _aten.conv3d.padding: _CONVOLUTION,
    _aten.conv_transpose1d.default: _TRANSPOSED,
    _aten.conv_transpose2d.input: _TRANSPOSED,
    _aten.conv_transpose3d.input: _TRANSPOSED,
    _aten.convolution.default: _CONVOLUTION,
    _aten.scaled_dot_product_attention.default: _ATTENTION,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _ATTENTION,
    _aten._scaled_dot_product_flash_attention.default: _ATTENTION,
    _aten._scaled_dot_product_efficient_attention.default: _ATTENTION,
    _aten._scaled_dot_product_cudnn_attention.default: _ATTENTION,
    SCAN: _Formula("scan", _scan),
    LINE: _TOKEN_CONVOLUTION,
    GRID: _TOKEN_CONVOLUTION,
}
