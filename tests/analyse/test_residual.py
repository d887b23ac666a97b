from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunepass.analyse.attention import find_attentions
from prunepass.analyse.residual import Residual, find_residuals
from prunepass.graph import meta
from tests.conftest import Captured


class Model(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(28, 28), nn.Conv1d(21, 21, 1)
        self.function = function

    def attend(self, x: Tensor) -> Tensor:
        heads = self.linear(x).unflatten(2, (2, 14)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads).mT.flatten(1, 2).mT

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def found(function: Callable[[nn.Module, Tensor], Tensor]) -> list[Residual]:
    graph = torch.export.export(Model(function).eval(), (torch.zeros(3, 21, 28),)).graph
    return find_residuals(graph, find_attentions(graph))


CASES: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "attention": (lambda m, x: x + m.attend(x), ["attention"]),
    "the other way round": (lambda m, x: m.attend(x) + x, ["attention"]),
    "in place": (lambda m, x: x.clone().add_(m.linear(x)), []),
    "mlp": (lambda m, x: x + m.linear(x).relu(), ["mlp"]),
    "one after the other": (
        lambda m, x: (lambda y: y + m.linear(y))(x + m.attend(x)),
        ["attention", "mlp"],
    ),
    "side by side": (lambda m, x: x + (m.attend(x) + m.linear(x)), ["attention"]),
    "one by one": (lambda m, x: x + m.attend(x) + m.linear(x), ["attention", "mlp"]),
    "a position convolution": (lambda m, x: x + m.conv(x), []),
    "two branches without a stream": (lambda m, x: m.attend(x) + m.linear(x), []),
    "a position embedding": (lambda m, x: x + torch.ones(1, 21, 28), []),
    "pictures": (lambda m, x: x[:, None] + m.linear(x)[:, None], []),
}


@pytest.mark.parametrize("name", list(CASES))
def test_kinds(name: str) -> None:
    function, kinds = CASES[name]
    assert [residual.kind for residual in found(function)] == kinds


def test_two_attentions_in_one_branch() -> None:
    (residual,) = found(lambda m, x: x + m.attend(m.attend(x)))
    assert len(residual.attentions) == 2


def test_a_chain_hangs_together(captured: Captured) -> None:
    graph = captured("class").graph
    chain = find_residuals(graph, find_attentions(graph))
    assert [r.kind for r in chain] == ["attention", "mlp"] * 3
    for before, after in itertools.pairwise(chain):
        assert after.source is before.node
    assert all(len(r.attentions) == (r.kind == "attention") for r in chain)
    assert {meta.concrete_shape(r.node, 5) for r in chain} == {(5, 21, 28)}
