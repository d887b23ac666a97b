from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn import functional

from prunepass.analyse.attention import Attention, find_attentions
from prunepass.graph import meta

Q, K, V = (3, 2, 11, 14), (3, 2, 13, 14), (3, 2, 13, 17)


def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * 0.3) @ k.transpose(-2, -1)).softmax(-1) @ v


def divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.dropout(((q @ k.mT) / 3.7).softmax(-1), 0.1, training=False) @ v


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.permute(0, 1, 3, 2) + torch.linspace(0, 1, 13, dtype=q.dtype)
    return torch.matmul(functional.softmax(scores, dim=-1).clone(), v)


def key_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ (k * 0.3).transpose(2, 3)).softmax(3) @ v


def three_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)


def gate(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.softmax(-1).sum() + k.sum() + v.sum()


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-2) @ v


class Model(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(q, k, v)


def found(function: Callable[..., Tensor]) -> tuple[Graph, list[Attention]]:
    inputs = tuple(torch.zeros(shape, dtype=torch.float64) for shape in (Q, K, V))
    graph = torch.export.export(Model(function), inputs, strict=False).graph
    return graph, find_attentions(graph)


def test_fused() -> None:
    graph, (attention,) = found(functional.scaled_dot_product_attention)
    assert [attention.query, attention.key, attention.value] == graph.find_nodes(op="placeholder")
    assert attention.core is attention.output
    assert attention.probabilities is None


@pytest.mark.parametrize("function", [scaled, divided, masked])
def test_written_out(function: Callable[..., Tensor]) -> None:
    graph, (attention,) = found(function)
    assert [attention.query, attention.key, attention.value] == graph.find_nodes(op="placeholder")
    assert attention.core is attention.probabilities
    assert meta.concrete_shape(attention.core, 3) == (3, 2, 11, 13)
    assert meta.concrete_shape(attention.output, 3) == (3, 2, 11, 17)


def test_a_scaled_key_is_not_mistaken() -> None:
    """The key before its scaling is not what was transposed: none is better than a wrong one."""
    _, (attention,) = found(key_scaled)
    assert attention.key is None or meta.concrete_shape(attention.key, 3) == K
    assert attention.probabilities is attention.core


def test_heads_folded_into_the_batch_give_no_roles() -> None:
    _, (attention,) = found(three_axes)
    assert (attention.query, attention.key, attention.probabilities) == (None, None, None)
    assert meta.concrete_shape(attention.output, 3) == (6, 11, 17)


@pytest.mark.parametrize("function", [gate, over_queries])
def test_other_softmaxes_are_no_attention(function: Callable[..., Tensor]) -> None:
    _, attentions = found(function)
    assert attentions == []


def test_several_in_graph_order() -> None:
    graph, (first, second) = found(
        lambda q, k, v: scaled(q, k, v).sum() + functional.scaled_dot_product_attention(q, k, v)
    )
    order = list(graph.nodes)
    assert order.index(first.core) < order.index(second.core)
    assert first.probabilities is not None
    assert second.probabilities is None
