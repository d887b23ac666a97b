"""ONNX Runtime on tensors where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from prunepass.backends.eager import EagerBackend
from prunepass.backends.onnx import OnnxBackend, OnnxEngine
from prunepass.backends.onnx_binding import BoundEngine, in_place, output_shapes


class Attend(nn.Module):
    """A cache [B, T, 4] and new entries [B, S, 4] to a sum and to new entries."""

    def forward(self, cache: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        weights = (new @ cache.transpose(1, 2)).softmax(-1)
        return (weights @ cache).sum(1), new * 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    batch, tokens, more = Dim("batch", min=1), Dim("tokens", min=1), Dim("more", min=1)
    program = export(
        Attend(), (torch.randn(2, 5, 4), torch.randn(2, 3, 4)),
        dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: more}),
    )  # fmt: skip
    return OnnxBackend(threads=1).build(program, tmp_path_factory.mktemp("bound"))


def inputs(batch: int, tokens: int, new: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, n, 4, generator=generator) for n in (tokens, new))  # type: ignore[return-value]


def test_it_says_what_the_engine_says(engine: OnnxEngine) -> None:
    bound = BoundEngine(engine)
    for seed, (batch, tokens, new) in enumerate(((2, 5, 3), (2, 5, 3), (1, 9, 1), (4, 2, 2))):
        given = inputs(batch, tokens, new, seed)
        for found, told in zip(bound(*given), engine(*given), strict=True):
            assert torch.equal(found, told)


def test_inputs_are_read_where_they_lie(engine: OnnxEngine) -> None:
    """What is written into a tensor between two calls is seen, though it is not bound again."""
    bound = BoundEngine(engine)
    cache, new = inputs(1, 6, 1)
    bound(cache, new)
    assert bound.inputs[engine.session.get_inputs()[0].name].data_ptr() == cache.data_ptr()
    cache[:, 3] += 5.0
    found = bound(cache, new)[0].clone()
    assert torch.equal(found, engine(cache, new)[0])
    torch.testing.assert_close(found, Attend()(cache, new)[0], rtol=1e-5, atol=1e-5)


def test_outputs_stay_where_they_are(engine: OnnxEngine) -> None:
    bound = BoundEngine(engine)
    given = inputs(1, 6, 1)
    first = [x.data_ptr() for x in bound(*given)]
    assert [x.data_ptr() for x in bound(*inputs(1, 6, 1, 5))] == first
    assert [x.data_ptr() for x in bound.outputs.values()] == first
    assert [list(x.shape) for x in bound(*inputs(3, 6, 2))] == [[3, 4], [3, 2, 4]]


def test_what_does_not_lie_in_a_row_is_put_so(engine: OnnxEngine) -> None:
    cache, new = inputs(2, 6, 2)
    turned = cache.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert torch.equal(BoundEngine(engine)(turned, new)[0], engine(cache, new)[0])


def test_shapes_of_outputs_follow_from_inputs(engine: OnnxEngine) -> None:
    assert output_shapes(engine.session, inputs(3, 7, 2)) == [[3, 4], [3, 2, 4]]

    class Unknown:
        def get_inputs(self) -> list[Any]:
            return engine.session.get_inputs()[:1]

        def get_outputs(self) -> list[Any]:
            return engine.session.get_outputs()

    assert output_shapes(Unknown(), inputs(3, 7, 2)) is None


def test_engines_of_pytorch_stay_as_they_are(tmp_path: Path, engine: OnnxEngine) -> None:
    program = export(Attend(), inputs(1, 2, 3))
    eager = EagerBackend().build(program, tmp_path)
    assert in_place(eager) is eager
    assert isinstance(in_place(engine), BoundEngine)
