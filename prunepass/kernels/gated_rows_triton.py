# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The sparse product of a GPU as a Triton kernel. Importing this file imports triton.

One kernel does all of it: each program finds by itself which inputs of its row stay, reads only
their rows of the weight for its block of outputs, and writes the outputs. Nothing is added by two
programs, so results do not change from run to run, and nothing is launched before or after.

Scores are not negative, so the bits of a score, read as a whole number, are ordered as scores are
(a NaN above all, as in `torch.topk`). All scores above some number are then all patterns above one
pattern, whether that number was asked for or is the K-th largest score.
"""

import triton
import triton.language as tl


@triton.jit
def pattern(score):
    """The bits of scores >= 0, as numbers >= 0 that are ordered as the scores."""
    # Without the sign, which a NaN may have.
    if score.dtype == tl.float32:
        found = score.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    else:
        found = score.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    return found


@triton.jit
def boundary(score, keep, inputs: tl.constexpr, WIDTH: tl.constexpr):
    """The pattern of the K-th largest score, and the last place where a score equal to it stays.

    The pattern is found bit by bit from the highest: a bit is set where at least K scores are not
    below what it gives. Among equal scores lower places stay.
    """
    place = tl.arange(0, WIDTH)
    there = place < inputs
    value = tl.load(score + place, mask=there, other=0.0)
    found = tl.where(there, pattern(value), -1)
    bits: tl.constexpr = value.dtype.primitive_bitwidth - 1  # the sign is never set
    least = 0
    for step in range(bits):
        trial = least | (1 << (bits - 1 - step))
        least = tl.where(tl.sum((found >= trial).to(tl.int32)) >= keep, trial, least)
    room = keep - tl.sum((found > least).to(tl.int32))
    level = found == least
    turn = tl.cumsum(level.to(tl.int32))
    return least, tl.max(tl.where(level & (turn <= room), place, -1))


@triton.jit
def gated_rows(
    x, score, weight, keep, least, rows, result,
    inputs: tl.constexpr, outputs: tl.constexpr, WIDTH: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, GROUPS: tl.constexpr, STAGES: tl.constexpr, MATRICES: tl.constexpr,
):  # fmt: skip
    """x W over the inputs that stay, a row and a block of outputs a program.

    The order of arguments, inputs, numbers, outputs, is what TensorRT launches a kernel with.

    Args:
        x: [R, n_in].
        score: [R, n_in], >= 0.
        weight: [n_in, n_out].
        keep: K, inputs that stay for each row; 0: those whose pattern lies above `least`.
        least: A pattern, read where `keep` is 0.
        rows: Where there are more rows than this, all inputs stay.
        result: [R, n_out].
        inputs: n_in.
        outputs: n_out.
        WIDTH: A power of two, at least n_in.
        OUTPUTS: Outputs of a program, a power of two.
        INPUTS: Rows of the weight that a group of warps multiplies at once, a power of two.
        GROUPS: Such groups, which are added up at the end, a power of two.
        STAGES: One more than how many times that is under way at once.
        MATRICES: Whether what multiplies matrices is used, which takes numbers of 16 bits.
    """
    block, row = tl.program_id(0), tl.program_id(1)
    x += row * inputs
    score += row * inputs
    last = -1
    if tl.num_programs(1) > rows:
        least = -1
    elif keep > 0:
        least, last = boundary(score, keep, inputs, WIDTH)
    column = block * OUTPUTS + tl.arange(0, OUTPUTS)
    lane = tl.arange(0, GROUPS)[:, None] * INPUTS + tl.arange(0, INPUTS)[None, :]
    source = weight + lane[:, :, None] * outputs + column[None, None, :]
    # A product of matrices with one row that counts: numbers of 16 bits go in as they are. Making
    # them wider one by one would take longer than reading them.
    height: tl.constexpr = 16 if MATRICES else INPUTS
    first = tl.arange(0, height)[None, :, None] == 0
    total = tl.zeros((GROUPS, height, OUTPUTS), dtype=tl.float32)
    for start in tl.range(0, inputs, INPUTS * GROUPS, num_stages=STAGES):
        place = start + lane
        there = place < inputs
        mark = pattern(tl.load(score + place, mask=there, other=0.0))
        stays = there & ((mark > least) | ((mark == least) & (place <= last)))
        factor = tl.load(x + place, mask=stays, other=0.0)
        inside = stays[:, :, None]
        if outputs % OUTPUTS != 0:
            inside = inside & (column < outputs)[None, None, :]
        read = tl.load(source, mask=inside, other=0.0)
        if MATRICES:
            total = tl.dot(tl.where(first, factor[:, None, :], 0.0).to(read.dtype), read, total)
        else:
            total += factor[:, :, None].to(tl.float32) * read.to(tl.float32)
        source += INPUTS * GROUPS * outputs
    if MATRICES:
        total = tl.where(first, total, 0.0)  # zero times a weight that is not finite is none
    found = tl.sum(tl.sum(total, axis=1), axis=0).to(result.dtype.element_ty)
    tl.store(result + row * outputs + column, found, mask=column < outputs)
