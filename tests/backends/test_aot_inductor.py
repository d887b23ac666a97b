from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunepass.backends.aot_inductor import AotInductorBackend, AotInductorEngine, moved
from prunepass.engines import available
from prunepass.errors import BackendError, UsageError
from prunepass.kernels.sparse_linear import gated_linear


class Subject(nn.Module):
    """Weights, a buffer, a tensor made on the way, and an operator of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.stored = nn.Parameter(torch.randn(16, 4))
        self.register_buffer("shift", torch.randn(16), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x) + self.shift + torch.arange(16, device=x.device)
        return gated_linear(hidden, hidden.abs(), self.stored, 5, None, 1), hidden


def exported() -> tuple[Subject, ExportedProgram, Tensor]:
    torch.manual_seed(0)
    model, x = Subject().eval().requires_grad_(False), torch.randn(2, 8)
    return model, torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},)), x


def test_all_of_a_program_moves_and_the_one_given_stays() -> None:
    model, program, x = exported()
    there = moved(program, "meta")
    found = there.module()(x.to("meta"))  # what had stayed behind would be refused
    assert [y.device.type for y in found] == ["meta", "meta"]
    assert {p.device.type for p in there.state_dict.values()} == {"meta"}
    assert [tuple(y.shape) for y in found] == [(2, 4), (2, 16)]
    for here, right in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(here, right)


def test_a_program_that_is_there_already_is_not_made_anew() -> None:
    _, program, _ = exported()
    assert moved(program, "cpu") is program
    assert moved(program, None) is program


def test_knows_where_a_package_computes(tmp_path: Path) -> None:
    model, program, x = exported()
    engine = AotInductorBackend(device="cpu").build(program, tmp_path)
    assert engine.device.type == "cpu"
    for here, right in zip(engine(x), model(x), strict=True):
        torch.testing.assert_close(here, right)


def test_inputs_are_copied_and_outputs_stay_where_an_input_was() -> None:
    def first(x: Tensor, y: Tensor) -> Tensor:
        assert x.device.type == y.device.type == "meta"
        return x

    engine = AotInductorEngine(first, None, torch.device("meta"))
    here, there = torch.ones(3), torch.ones(3, device="meta")
    assert engine(here, there)[0].device.type == "meta"
    with pytest.raises(NotImplementedError, match="meta tensor"):
        engine(here, here)  # what has no numbers cannot be copied back


def test_refuses_a_device_that_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="do not compute on 'tpu'"):
        AotInductorBackend(device="tpu")


def test_says_that_a_gpu_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(BackendError, match="cannot be used here") as caught:
        available(AotInductorBackend(device="cuda"))
    assert "no CUDA device" in str(caught.value)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, program, x = exported()
    engine = AotInductorBackend(device="cuda").build(program, tmp_path)
    assert engine.device.type == "cuda"
    assert AotInductorBackend().load(tmp_path).device.type == "cuda"
    for inputs, where in ((x, "cpu"), (x.cuda(), "cuda")):
        for here, right in zip(engine(inputs), model(x), strict=True):
            assert here.device.type == where
            torch.testing.assert_close(here.cpu(), right, rtol=1e-4, atol=1e-4)
