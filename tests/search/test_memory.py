"""Memory of plans: weights that are read, and what is alive at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.apply import apply_plan
from prunepass.capturing import capture
from prunepass.errors import PlanError
from prunepass.plans import Step
from prunepass.search.decide import plan_for
from prunepass.search.memory import memory
from tests.search.small import SIZE, TOKENS, small_vit

FLOAT = 4


class Chain(nn.Module):
    """8 -> 32 -> 5 channels, over 3 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    made = small_vit(useless=2)
    return capture(made, (made.images(2),))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return small_vit().images(24)


def drops(*sites: str) -> list[Step]:
    return [Step(kind="drop_layers", site=site) for site in sites]


def test_weights_and_the_two_widest_values_of_a_chain() -> None:
    program = torch.export.export(Chain().eval(), (torch.zeros(2, 3, 8),))
    weights = (8 * 32 + 32 + 32 * 5 + 5) * FLOAT
    # Both sides of the ReLU at once; what entered is gone by then.
    assert memory(program, ()) == weights + 2 * 3 * 32 * FLOAT


def test_a_dropped_layer_takes_its_weights_along(program: ExportedProgram) -> None:
    width = SIZE["channels"]
    attention = (4 * width * width + 4 * width + 2 * width) * FLOAT
    mlp = (8 * width * width + 5 * width + 2 * width) * FLOAT
    dense = memory(program, ())
    assert dense - memory(program, drops("block[1].mlp")) == mlp
    assert dense - memory(program, drops("block[1].attention")) == attention
    assert dense - memory(program, drops("block[1]", "block[2]")) == 2 * (attention + mlp)


def test_the_peak_lies_in_a_block(program: ExportedProgram) -> None:
    """The stream and both sides of the MLP's activation are there at once."""
    weights = sum(x.nbytes for x in program.parameters())
    width = SIZE["channels"]
    peak = memory(program, ()) - weights
    assert TOKENS * (width + 8 * width) * FLOAT <= peak <= 2 * TOKENS * (width + 8 * width) * FLOAT


def test_fewer_tokens_in_front_of_everything_lower_the_peak(program: ExportedProgram) -> None:
    step = Step(kind="reduce_tokens", site="block[0].attention", rule="key-norm", keep=10)
    assert memory(program, [step]) < memory(program, ())


def test_a_target_of_memory_is_met_by_dropping_layers(
    program: ExportedProgram, images: Tensor
) -> None:
    dense = memory(program, ())
    plan = plan_for(program, images, target=f"memory<={0.75 * dense / 1e6}MB", minutes=0.01)
    assert any(step.kind == "drop_layers" for step in plan.steps)
    assert memory(program, plan.steps) <= 0.75 * dense * 1.005
    assert plan.notes["cost"] == memory(program, plan.steps)
    applied = apply_plan(program, plan)
    left, before = (sum(x.nbytes for x in p.parameters()) for p in (applied, program))
    assert left < before


def test_what_memory_cannot_fall_below_is_told(program: ExportedProgram, images: Tensor) -> None:
    with pytest.raises(PlanError, match="cannot be met") as error:
        plan_for(program, images, target="memory<=0.1", minutes=0.01)
    least = float(str(error.value).split("reached is memory ")[1].split("MB")[0]) * 1e6
    weights = memory(program, ()) - memory(program, drops("block[1]", "block[2]"))
    assert memory(program, ()) - least >= 0.99 * weights
