"""The selective scan without a loop: by doubling, for compilers that unroll or refuse loops.

After k rounds a state holds what the last 2^k tokens left in it; one more round adds to each state
the one 2^k tokens before, decayed over those tokens. Decays are at most 1, so nothing overflows,
as it would in the form that divides by a running product. A block form of matrices needs one decay
for all channels, which this scan does not have.

Source: Hillis and Steele, Data parallel algorithms, 1986, on the recurrence of
`prunepass.ops.selective_scan`.
"""

from __future__ import annotations

from typing import Any


def scan_by_doubling(x: Any, delta: Any, decay: Any, A: Any, B: Any, C: Any, D: Any) -> Any:
    """What `selective_scan` gives, [B, T, C], in ceil(log2 T) rounds on [B, T, S, C]."""
    from onnxscript import opset18 as op

    def axis(number: int) -> Any:
        return op.Constant(value_ints=[number])

    def cut(value: Any, start: int, end: int) -> Any:
        return op.Slice(value, axis(start), axis(end), axis(1))

    tokens = x.shape[1]
    rates = op.Transpose(A, perm=[1, 0])
    share = op.Exp(op.Mul(op.Unsqueeze(decay, axis(2)), rates))
    state = op.Mul(op.Unsqueeze(op.Mul(delta, x), axis(2)), op.Unsqueeze(B, axis(3)))
    share = cut(share, 1, tokens)  # of the tokens that have one so far before them
    before = 1
    while before < tokens:
        earlier = cut(state, 0, tokens - before)
        later = op.Add(cut(state, before, tokens), op.Mul(share, earlier))
        state = op.Concat(cut(state, 0, before), later, axis=1)
        left = tokens - 2 * before
        if left > 0:
            share = op.Mul(cut(share, before, before + left), cut(share, 0, left))
        before *= 2
    read = op.Squeeze(op.MatMul(op.Unsqueeze(C, axis(2)), state), axis(2))
    return op.Add(read, op.Mul(D, x))
