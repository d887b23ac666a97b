from __future__ import annotations

import torch
from torch.nn import functional

from prunepass.ops.token_places import grid_convolution, line_convolution, reorder_tokens


def tokens(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, 3, generator=generator, dtype=torch.float64)


def test_line_convolution_sees_what_is_before_a_token_only() -> None:
    x, weight, bias = tokens(6), torch.randn(3, 1, 4).double(), torch.randn(3).double()
    found = line_convolution(x, weight, bias)
    for t in range(6):
        expected = bias.clone().expand(2, 3).clone()
        for back in range(min(t, 3) + 1):
            expected += weight[:, 0, 3 - back] * x[:, t - back]
        torch.testing.assert_close(found[:, t], expected, rtol=1e-12, atol=1e-12)


def test_grid_convolution_is_one_over_rows_and_columns() -> None:
    x, weight = tokens(12), torch.randn(3, 1, 3, 3).double()
    found = grid_convolution(x, weight, None, 4)
    grid = functional.conv2d(x.mT.reshape(2, 3, 3, 4), weight, padding=1, groups=3)
    torch.testing.assert_close(found, grid.flatten(2).mT, rtol=1e-12, atol=1e-12)


def test_reordering_and_back() -> None:
    x, order = tokens(5), [3, 0, 4, 1, 2]
    found = reorder_tokens(x, order)
    assert torch.equal(found, x[:, order])
    assert torch.equal(reorder_tokens(x, [4, 3, 2, 1, 0]), x.flip(1))


def test_gradients() -> None:
    x = tokens(6).requires_grad_()
    weight = torch.randn(3, 1, 4).double().requires_grad_()
    bias = torch.randn(3).double().requires_grad_()
    assert torch.autograd.gradcheck(line_convolution, (x, weight, bias))
    square = torch.randn(3, 1, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: grid_convolution(a, b, None, 3), (x, square))
    assert torch.autograd.gradcheck(lambda a: reorder_tokens(a, [5, 0, 1, 4, 2, 3]), (x,))
