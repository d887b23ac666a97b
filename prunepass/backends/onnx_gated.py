"""The sparse product in ONNX's own operators: dense, with zeros for the inputs that do not matter.

It says what the compiled operator says and reads all of the weight, so nothing is gained by it: it
is for runtimes that take no operator of ours, TensorRT above all, and for files that have to run
where nothing compiled may lie beside them.
"""

from __future__ import annotations

from typing import Any

from prunepass.backends.onnx_topk import LARGEST_K

_CUTS, _ROUNDS = 256, 4
READS_ALL = "sparse products read all of their weights here, with zeros: same answers, no gain"
"""What a report says of an engine with these."""


def masked_product(
    x: Any, score: Any, weight: Any, keep: int, threshold: float, rows: int
) -> Any:  # fmt: skip
    """What `prunepass::gated_linear` gives, [..., n_out]; of equal scores at the boundary all stay.

    Args:
        x: [..., n_in].
        score: [..., n_in], >= 0.
        weight: [n_in, n_out].
        keep: Inputs that stay for each row.
        threshold: Where it is not negative, inputs of a larger score stay in place of `keep`.
        rows: Where x has more rows than this all inputs stay.
    """
    from onnxscript import opset18

    op: Any = opset18

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    inputs = int(weight.shape[0])
    if rows == 0 or (threshold < 0 and keep >= inputs):
        return op.MatMul(x, weight)
    flat = op.Reshape(score, numbers(-1, inputs))
    many = op.Greater(op.Gather(op.Shape(flat), numbers(0)), numbers(rows))
    if rows == 1:
        # Where there are more rows all inputs stay, so the first one is all that is ever ranked.
        score = op.Slice(flat, numbers(0), numbers(1), numbers(0))
    chosen = _above(op, score, threshold) if threshold >= 0 else _largest(op, score, keep, inputs)
    nothing = op.CastLike(op.Constant(value_float=0.0), x)
    return op.MatMul(op.Where(op.Or(chosen, many), x, nothing), weight)


def _above(op: Any, score: Any, threshold: float) -> Any:
    # What is no number stays, too, so that it is not lost.
    return op.Not(op.LessOrEqual(score, op.CastLike(op.Constant(value_float=threshold), score)))


def _largest(op: Any, score: Any, keep: int, inputs: int) -> Any:
    """Where a score is among the `keep` largest; the smaller side, kept or not, is ranked."""
    left = inputs - keep + 1
    largest, ranked = (1, keep) if keep <= left else (0, left)
    if ranked > LARGEST_K:
        return _by_counting(op, score, keep)
    many = op.Constant(value_ints=[ranked])
    values, _ = op.TopK(score, many, axis=-1, largest=largest, sorted=1)
    ends = [op.Constant(value_ints=[n]) for n in (ranked - 1, ranked, -1)]
    return op.GreaterOrEqual(score, op.Slice(values, *ends))


def _by_counting(op: Any, score: Any, keep: int) -> Any:
    """The same without ranking: the limit is searched by counting what lies above candidates.

    Each round cuts the range that holds the limit into `_CUTS`, so that the last one tells limits
    apart by 2^-32 of the largest score, below what a float32 of that size does.
    """
    score = op.Cast(score, to=1)
    width = op.ReduceMax(score, op.Constant(value_ints=[-1]), keepdims=1)
    limit = op.Sub(width, width)
    each = op.Unsqueeze(score, op.Constant(value_ints=[-1]))
    cuts = op.Constant(value_floats=[cut / _CUTS for cut in range(_CUTS)])
    for _ in range(_ROUNDS):
        candidates = op.Add(limit, op.Mul(width, cuts))
        above = op.GreaterOrEqual(each, op.Unsqueeze(candidates, op.Constant(value_ints=[-2])))
        counted = _sum(op, above, axis=-2, keepdims=0)
        enough = op.GreaterOrEqual(counted, op.Constant(value_float=float(keep)))
        # Candidates ascend, so those that leave enough come first, and the last of them is meant.
        last = op.Sub(_sum(op, enough, axis=-1, keepdims=1), op.Constant(value_float=1.0))
        width = op.Mul(width, op.Constant(value_float=1.0 / _CUTS))
        limit = op.Add(limit, op.Mul(width, last))
    return op.GreaterOrEqual(score, limit)


def _sum(op: Any, flags: Any, *, axis: int, keepdims: int) -> Any:
    return op.ReduceSum(op.Cast(flags, to=1), op.Constant(value_ints=[axis]), keepdims=keepdims)
