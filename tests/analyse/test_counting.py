"""What programs cost by part, and other counters where they can count."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.analyse.counting import Count, counts
from prunepass.analyse.flops import macs
from prunepass.graph.parts import BEHIND, IN_FRONT, Part
from tests.conftest import Captured, Reduced
from tests.steps import step
from tests.tiny_models import CHANNELS, CLASSES, DEPTH, MLP, WIDTH, images, tiny


def exported(model: nn.Module, *inputs: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model.eval(), inputs, strict=False)


def test_parts_by_hand(captured: Captured) -> None:
    found = counts(captured("class"), batch=3)
    sites = found.sites
    assert sites["block[1].attention"].macs == 3 * (4 * 21 * CHANNELS**2 + 2 * 21**2 * CHANNELS)
    assert sites["block[1].mlp"].macs == 3 * 2 * 21 * CHANNELS * MLP
    assert sites[IN_FRONT].macs == 3 * 20 * CHANNELS * 3 * 6 * 6
    assert sites[BEHIND].macs == 3 * CHANNELS * CLASSES
    assert sites["block[1].mlp"].parameters == 2 * CHANNELS * MLP + MLP + CHANNELS + 2 * CHANNELS
    assert sites["block[1].mlp"].weight_bytes == 8 * sites["block[1].mlp"].parameters
    assert found.layers["block[1]"] == sites["block[1].attention"] + sites["block[1].mlp"]
    assert set(found.groups) == {"attention", "mlp", "other"}
    assert len(found.layers) == DEPTH + 2


def test_totals(captured: Captured) -> None:
    program = captured("class")
    found = counts(program, batch=3)
    total = found.total
    assert total.macs == macs(program, batch=3) == sum(found.kinds.values())
    assert total.flops == 2 * total.macs
    assert total.parameters == sum(p.numel() for p in program.parameters())
    assert counts(program, batch=6).total.activation_bytes > 1.9 * total.activation_bytes
    assert 0 < found.peak_activation_bytes < total.activation_bytes
    told = json.loads(json.dumps(found.to_dict()))
    assert told["theoretical"] is True
    assert told["flops"] == 2 * told["macs"]


def test_scoring_and_merging_are_told_apart(reduced: Reduced) -> None:
    program, _ = reduced("class", [step("block[0].attention", "tome", 15, action="merge")])
    found = counts(program)
    scoring = found.parts[Part("block[0].attention", "scoring")]
    # Ten tokens are held against ten others by their keys, the mean of the heads.
    assert scoring.macs == found.kinds["scoring"] == 10 * 10 * WIDTH
    # Six tokens join fifteen, with their size beside their channels.
    assert found.kinds["merging"] == 15 * 6 * (CHANNELS + 1)
    assert found.total.macs == macs(program)


class Reused(nn.Module):
    """One weight twice, a view, a result nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])
        return self.line(self.line(x).reshape(2, 4, 8)).flatten(0, 1).relu()


def test_shared_weights_views_and_what_nobody_reads() -> None:
    found = counts(exported(Reused(), torch.randn(8, 8)))
    assert found.total == Count(
        macs=2 * 8 * 8 * 8, parameters=64, weight_bytes=256, activation_bytes=3 * 256
    )
    # The input stays; beside it two results at a time.
    assert found.peak_activation_bytes == 3 * 256
    assert found.kinds == {"linear": 2 * 8 * 8 * 8}


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Any:
        from torch._higher_order_ops.while_loop import while_loop

        return while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, y @ y), (torch.tensor(0), x)
        )  # fmt: skip


def test_what_no_formula_knows_is_named() -> None:
    found = counts(exported(Loop(), torch.randn(4, 4)))
    assert [name for name in found.uncounted if "while_loop" in name]
    assert counts(exported(nn.Bilinear(3, 4, 5), torch.randn(2, 3), torch.randn(2, 4))).uncounted


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bthd,bshd->bhts", ((2, 5, 3, 4), (2, 7, 3, 4)), 2 * 3 * 5 * 7 * 4),
        ("...td,...sd->...ts", ((2, 3, 5, 4), (2, 3, 7, 4)), 2 * 3 * 5 * 7 * 4),
        ("td,sd", ((5, 4), (7, 4)), 5 * 7 * 4),
        ("ab,bc,cd->ad", ((2, 3), (3, 5), (5, 7)), 2 * 3 * 5 + 2 * 5 * 7),
        ("ab->a", ((2, 3),), 0),
    ],
)
def test_einsum(equation: str, shapes: tuple[tuple[int, ...], ...], expected: int) -> None:
    class Sum(nn.Module):
        def forward(self, *operands: Tensor) -> Tensor:
            return torch.einsum(equation, *operands)

    assert counts(exported(Sum(), *(torch.randn(s) for s in shapes))).total.macs == expected


@pytest.mark.parametrize("name", ["class", "unfused", "talking"])
def test_against_the_counter_of_torch(captured: Captured, name: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # On a CPU it counts nothing of fused attention, so that is written out for it.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tiny(name)(images(3, name=name))
    assert counter.get_total_flops() == counts(captured(name), batch=3).total.flops


def test_against_fvcore(captured: Captured) -> None:
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    analysis = fvcore.FlopCountAnalysis(tiny("unfused"), images(1, name="unfused"))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = analysis.by_operator()
    products = sum(counted[name] for name in ("linear", "conv", "matmul", "bmm", "einsum"))
    assert products == counts(captured("unfused")).total.macs
