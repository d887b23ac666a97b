"""Programs without tensors changed in place compute what they computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunepass.errors import CaptureError
from prunepass.graph.writes import fold_convolutions, fold_writes


class Parts(nn.Module):
    """Writes all of a tensor, a part of it, and a part of one of its rows."""

    def forward(self, x: Tensor) -> Tensor:
        whole = x.clone()
        whole[:, :] = whole + 1
        strided = whole * 2
        strided[:, 1::2] = x[:, 1::2]
        row = strided[0]
        row[:2] = row[:2] - 5
        return torch.cat([strided, row[None], whole])


class Spread(nn.Module):
    """Writes one row into all."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, :] = x[0]
        return y


@pytest.mark.parametrize("model", [Parts, Spread])
def test_writes_become_values(model: type[nn.Module]) -> None:
    x = torch.randn(3, 6)
    program = torch.export.export(model(), (x,))
    expected = model()(x)
    fold_writes(program, "test")
    found = program.module()(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for node in program.graph.nodes:
        assert not getattr(getattr(node.target, "_schema", None), "is_mutable", False)


class Added(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1)
        return y


class Seen(nn.Module):
    """Looks at a tensor in another way before it is written, and uses that later."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        view = y.transpose(0, 1)
        y[0] = 0.0 * x[0]
        return view + 1


class Source(nn.Module):
    """Writes into a view and uses later what it is a view of."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        view = y.reshape(-1)
        view[:2] = x[0, :2] - 1
        return y + 1


@pytest.mark.parametrize("model", [Added, Seen, Source])
def test_other_writes_are_refused(model: type[nn.Module]) -> None:
    program = torch.export.export(model(), (torch.randn(3, 3),))
    with pytest.raises(CaptureError, match="in place in a way that cannot be followed"):
        fold_writes(program, "test")


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_over_one_place_is_a_product(bias: bool) -> None:
    model = nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=bias)
    x = torch.randn(7, 3, 2, 4, 4)
    program = torch.export.export(model, (x,))
    fold_convolutions(program)
    torch.testing.assert_close(program.module()(x), model(x))
    assert "conv3d" not in str(program.graph)


def test_other_convolutions_stay() -> None:
    model = nn.Conv3d(3, 5, 3, padding=1)
    x = torch.randn(2, 3, 3, 3, 3)
    program = torch.export.export(model, (x,))
    fold_convolutions(program)
    torch.testing.assert_close(program.module()(x), model(x))
    assert "conv3d" in str(program.graph)
