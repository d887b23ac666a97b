"""Operations on tokens that know where each of them stands: along a line, or on a grid.

In a graph each is one node, so that a pass can say what becomes of it where tokens are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@torch.library.custom_op("prunepass::line_convolution", mutates_args=())
def line_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, T, C]: each channel of `x` [B, T, C] convolved along the tokens, causally.

    Args:
        x: Tokens.
        weight: [C, 1, W]; entry W - 1 weighs a token itself, the others those in front of it.
        bias: [C].
    """
    return along_line(x, weight, bias).contiguous()


def along_line(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`line_convolution`, written out."""
    padded = functional.pad(x.transpose(1, 2), (weight.shape[2] - 1, 0))
    return functional.conv1d(padded, weight, bias, groups=weight.shape[0]).transpose(1, 2)


@torch.library.custom_op("prunepass::grid_convolution", mutates_args=())
def grid_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:
    """[B, T, C]: each channel of `x` [B, T, C] convolved over the grid that its tokens form.

    Args:
        x: Tokens, rows of the grid one after the other.
        weight: [C, 1, K, K], K odd; the grid is surrounded by zeros.
        bias: [C].
        width: Tokens a row.
    """
    return over_grid(x, weight, bias, width).contiguous()


def over_grid(x: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> Tensor:
    """`grid_convolution`, written out."""
    grid = x.transpose(1, 2).unflatten(2, (-1, width))
    made = functional.conv2d(
        grid, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0]
    )
    return made.flatten(2).transpose(1, 2)


@torch.library.custom_op("prunepass::reorder_tokens", mutates_args=())
def reorder_tokens(x: Tensor, order: Sequence[int]) -> Tensor:
    """[B, T, C]: place i holds token order[i] of `x` [B, T, C]."""
    return in_order(x, order)


def in_order(x: Tensor, order: Sequence[int]) -> Tensor:
    """`reorder_tokens`, written out."""
    if list(order) == list(range(len(order)))[::-1]:
        return x.flip(1)
    return x.index_select(1, torch.tensor(order, device=x.device))


def at_places(x: Tensor, order: Tensor) -> Tensor:
    """`in_order` of an order that is a tensor [T] int64."""
    return x.index_select(1, order)


@line_convolution.register_fake
@grid_convolution.register_fake
@reorder_tokens.register_fake
def _shape(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


LINE = torch.ops.prunepass.line_convolution.default
GRID = torch.ops.prunepass.grid_convolution.default
REORDER = torch.ops.prunepass.reorder_tokens.default


def _by_recomputing(function: Any) -> Any:
    """The gradient of an operation as torch finds it for the same thing written out."""

    def gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        given = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in ctx.given]
        wanted = [a for a in given if isinstance(a, Tensor)]
        with torch.enable_grad():
            found = iter(torch.autograd.grad(function(*given), wanted, grad))
        return tuple(next(found) if isinstance(a, Tensor) else None for a in given)

    return gradients


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.given = inputs


line_convolution.register_autograd(_by_recomputing(along_line), setup_context=_remember)
grid_convolution.register_autograd(_by_recomputing(over_grid), setup_context=_remember)
reorder_tokens.register_autograd(_by_recomputing(in_order), setup_context=_remember)
