"""One product of a vector with the rows of a matrix that matter, in every place it can run.

`gated_linear` is what stands in a graph: an operator of torch, so that a program carries it as one
node and each backend lowers it in its own way. On a CPU it is a kernel compiled on first use, or,
without a compiler, an embedding bag over the input-major weight, in stock operations; on a GPU a
Triton kernel; for ONNX Runtime an operator compiled with the bundle.
"""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor
from torch.nn import functional as F

from prunepass.errors import PlanError, UsageError
from prunepass.kernels.native import dense_product, has_native, native_product
from prunepass.rules.weight_aware import input_score, kept_inputs, threshold_mask

PIECES = (16, 8, 4, 2)
"""A row of the weight is read in one of so many pieces: one bag runs on one thread."""
_NARROWEST = 32
"""Numbers a piece has at least."""


def sparse_linear(
    x: Tensor, weight_input_major: Tensor, column_norm: Tensor | None, keep: float | int
) -> Tensor:
    """x W^T over the inputs that matter: [..., n_out].

    Where x has more rows than one, a dense product is taken: their inputs differ, so together they
    would read all of the weight.

    Args:
        x: [..., n_in].
        weight_input_major: W^T [n_in, n_out], contiguous: rows of inputs that do not matter are
            not read.
        column_norm: c [n_in] of the weight-informed score |x| c, or None for |x|.
        keep: Share of the inputs that stay, in (0, 1], or their number.

    Raises:
        PlanError: `keep` leaves fewer than one input, or more than there are.
        UsageError: The tensors do not fit together.

    Source: WINA, arXiv 2505.19427, equation 4.
    """
    _check_product(x, weight_input_major)
    inputs = weight_input_major.shape[0]
    if column_norm is not None and not (
        isinstance(column_norm, Tensor) and column_norm.shape == (inputs,)
    ):
        raise UsageError(
            "column_norm must hold one number for each input, or be None",
            found=_told(column_norm),
            fix=f"a tensor [{inputs}], such as the norms of the rows of weight_input_major",
        )
    count = checked_count(keep, inputs)
    if count == inputs:
        return x @ weight_input_major
    score = input_score(x, column_norm).to(x.dtype)  # norms may be of a wider kind
    return gated_linear(x, score, weight_input_major, count, None, 1)


def checked_count(keep: float | int, inputs: int) -> int:
    """How many of n inputs stay for a share or a number.

    Raises:
        PlanError: Fewer than one, or more than there are.
    """
    whole = isinstance(keep, Integral) and not isinstance(keep, bool)
    share = isinstance(keep, Real) and not isinstance(keep, Integral)
    fine = whole and 1 <= keep <= inputs
    if not fine and not (share and 0.0 < keep <= 1.0 and int(keep * inputs + 1e-6) >= 1):
        raise PlanError(
            f"keep must leave between 1 and {inputs} inputs of a linear layer",
            found=repr(keep),
            fix="keep=0.5 keeps half of the inputs, keep=2048 keeps so many",
        )
    return kept_inputs(inputs, float(keep)) if share else int(keep)


def _check_product(x: Tensor, weight: Tensor) -> None:
    """Raises UsageError unless x [..., n_in] can be multiplied by a weight [n_in, n_out]."""
    what = None
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        what = "x and the weight of a sparse product must be tensors"
    elif weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[0]:
        what = "x [..., n_in] does not fit a weight stored input-major, [n_in, n_out]"
    elif x.dtype != weight.dtype or not x.dtype.is_floating_point:
        what = "x and the weight of a sparse product must be of the same kind of floating point"
    elif x.device != weight.device:
        what = "x and the weight of a sparse product must be on the same device"
    if what is not None:
        raise UsageError(
            what, found=f"x {_told(x)}, weight {_told(weight)}",
            fix="for a torch.nn.Linear the weight is linear.weight.t().contiguous(), and "
            "x.to(weight) is of its kind",
        )  # fmt: skip


def _told(value: object) -> str:
    """A tensor by what is known of it, anything else by its type."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = str(value.dtype).removeprefix("torch.")
    return f"{list(value.shape)} {kind} on {value.device}"


def _check_gate(x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float) -> None:
    """Raises UsageError where a kernel would read past what it is given.

    Kernels read addresses: what does not fit is no error there but memory of something else.
    """
    _check_product(x, weight)
    if score.shape != x.shape or score.dtype != x.dtype or score.device != x.device:
        raise UsageError(
            "the inputs of a sparse product need one score each, of their kind",
            found=f"x {_told(x)}, score {_told(score)}",
            fix="such as x.abs()",
        )
    if not threshold >= 0:
        if threshold != threshold:
            raise UsageError(
                "the threshold of a sparse product is no number", found=repr(threshold),
                fix="a number of at least 0, or a negative one for none",
            )  # fmt: skip
        checked_count(keep, weight.shape[0])


_NAME = "prunepass::gated_linear"
torch.library.define(
    _NAME,
    "(Tensor x, Tensor score, Tensor weight, int keep, float threshold, int rows) -> Tensor",
)


@torch.library.impl(_NAME, "cpu")
def _on_cpu(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float, rows: int
) -> Tensor:
    _check_gate(x, score, weight, keep, threshold)
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:-1], weight.shape[1]))
    if x.numel() // x.shape[-1] > rows:
        return dense_product(x, weight)
    if has_native(x.dtype):
        return native_product(x, score, weight, keep, threshold)
    return bagged(x, score, weight, keep, None if threshold < 0 else threshold)


@torch.library.impl(_NAME, "cuda")
def _on_cuda(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float, rows: int
) -> Tensor:
    from prunepass.kernels.sparse_triton import gated_linear_cuda

    _check_gate(x, score, weight, keep, threshold)
    return gated_linear_cuda(x, score, weight, keep, threshold, rows)


@torch.library.register_fake(_NAME)  # type: ignore[untyped-decorator, unused-ignore]
def _shape_alone(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float, rows: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


GATED_LINEAR = torch.ops.prunepass.gated_linear.default
"""The operator, as it stands in graphs: arguments as of `gated_linear`."""


def gated_linear(
    x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float | None, rows: int
) -> Tensor:
    """x W^T over the inputs of the largest score: [..., n_out].

    Args:
        x: [..., n_in].
        score: [..., n_in], >= 0.
        weight: W^T [n_in, n_out], contiguous.
        keep: K, inputs that stay for each row. Of equal scores at the boundary lower indices stay
            in the compiled kernel; embedding bags take either.
        threshold: Instead of K: inputs whose score lies above it stay, however many; a negative
            one is none. Scores that are no numbers lie above all.
        rows: Where x has more rows than this the product is dense.
    """
    limit = -1.0 if threshold is None else threshold
    found: Tensor = torch.ops.prunepass.gated_linear(x, score, weight, keep, limit, rows)
    return found


def bagged(x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float | None) -> Tensor:
    """`gated_linear` of a few rows as embedding bags, in stock operations.

    Source: section 11 of the methods page: one bag is one thread, so a row of the weight is cut
    into P pieces and P bags are summed.
    """
    inputs, outputs = weight.shape
    pieces = next((p for p in PIECES if outputs % p == 0 and outputs // p >= _NARROWEST), 1)
    flat, flat_score = x.reshape(-1, inputs), score.reshape(-1, inputs)
    table = weight.reshape(inputs * pieces, outputs // pieces)
    piece = torch.arange(pieces, device=x.device)
    if threshold is None:
        index = flat_score.topk(keep, dim=1, sorted=False).indices
        value = flat.gather(1, index)[:, None, :].expand(-1, pieces, -1)
        place = index[:, None, :] * pieces + piece[:, None]
        found = F.embedding_bag(
            place.reshape(-1, keep), table, mode="sum",
            per_sample_weights=value.reshape(-1, keep),
        )  # fmt: skip
        return found.reshape(*x.shape[:-1], outputs)
    row, column = threshold_mask(flat_score, threshold).nonzero(as_tuple=True)
    ends = torch.bincount(row, minlength=len(flat)).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    kept = row.shape[0]
    offsets = (starts[None] + kept * piece[:, None]).reshape(-1)
    place = (column[None] * pieces + piece[:, None]).reshape(-1)
    found = F.embedding_bag(
        place, table, offsets, mode="sum",
        per_sample_weights=flat[row, column].repeat(pieces),
    )  # fmt: skip
    return found.reshape(pieces, len(flat), -1).transpose(0, 1).reshape(*x.shape[:-1], outputs)
