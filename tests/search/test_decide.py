"""The planner over everything, on a small model whose layers matter differently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.analyse.flops import macs
from prunepass.apply import apply_plan
from prunepass.capturing import capture
from prunepass.errors import ModelError, PlanError, UsageError
from prunepass.measure.fidelity import kl
from prunepass.plans import Plan
from prunepass.search.decide import plan_for
from prunepass.search.judge import Judge
from prunepass.search.recipe import Recipe, Recipes
from tests.conftest import Captured
from tests.search.small import small_vit
from tests.tiny_models import images as pictures


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    made = small_vit(useless=2)
    return capture(made, (made.images(2),))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return small_vit().images(24)


@pytest.fixture(scope="module")
def planned(
    program: ExportedProgram, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Path]:
    memory = tmp_path_factory.mktemp("search") / "memory.jsonl"
    return plan_for(program, images, target="flops<=0.7", memory_file=memory), memory


def test_the_target_is_met_as_counted_on_the_rewritten_program(
    program: ExportedProgram, planned: tuple[Plan, Path]
) -> None:
    plan, _ = planned
    smaller = apply_plan(program, plan)
    assert macs(smaller) / macs(program) == pytest.approx(plan.notes["macs_ratio"], abs=1e-3)
    assert macs(smaller) / macs(program) <= 0.7 * 1.01


def test_a_useless_layer_is_found_and_beats_tokens_alone(planned: tuple[Plan, Path]) -> None:
    plan, _ = planned
    dropped = {s.site for s in plan.steps if s.kind == "drop_layers"}
    assert any(site.startswith("block[2]") for site in dropped)
    assert plan.notes["kl"] < plan.notes["tokens_alone"][1]


def test_what_it_tells_is_so(
    program: ExportedProgram, images: torch.Tensor, planned: tuple[Plan, Path]
) -> None:
    plan, _ = planned
    judge = Judge(program, images, None)
    unseen = judge.images["unseen"]
    dense = program.module(check_guards=False)(unseen)
    said = apply_plan(program, plan).module(check_guards=False)(unseen)
    assert float(kl(dense, said).mean()) == pytest.approx(
        plan.notes["kl_unseen"], rel=1e-3, abs=2e-6
    )
    assert "stopped: nothing left to try" in plan.notes["why"]
    costs = [row[0] for row in plan.notes["front"]]
    losses = [row[2] for row in plan.notes["front"]]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert Plan.from_json(plan.to_json()) == plan


def test_an_interrupted_search_goes_on_and_ends_the_same(
    program: ExportedProgram, images: torch.Tensor, planned: tuple[Plan, Path], tmp_path: Path
) -> None:
    plan, memory = planned
    lines = memory.read_text().splitlines()
    half = tmp_path / "half.jsonl"
    half.write_text("\n".join([*lines[: len(lines) // 2], lines[-1][:20]]) + "\n")
    again = plan_for(program, images, target="flops<=0.7", memory_file=half)
    assert again == plan
    assert len(half.read_text().splitlines()) == len(lines) + 1  # the half line is passed over
    with pytest.raises(UsageError, match="another model"):
        plan_for(program, images[:20], target="flops<=0.7", memory_file=half)


def test_time_is_kept(program: ExportedProgram, images: torch.Tensor) -> None:
    plan = plan_for(program, images, target="flops<=0.7", minutes=1e-6)
    assert plan.notes["why"][-1] == "stopped: time was up"
    assert plan.notes["tried"] < 5


def test_a_target_that_cannot_be_met_says_the_best(
    program: ExportedProgram, images: torch.Tensor
) -> None:
    with pytest.raises(PlanError, match="cannot be met") as error:
        plan_for(program, images, target="flops<=0.02")
    assert "the least that was reached is flops 0." in str(error.value)


@pytest.mark.parametrize("target", ["flops<=0.97", "tokens<=1.0"])
def test_what_gains_too_little_is_declined(
    target: str, program: ExportedProgram, images: torch.Tensor
) -> None:
    with pytest.raises(PlanError, match="declined"):
        plan_for(program, images, target=target)


def test_a_floor_that_nothing_holds_is_declined(captured: Captured) -> None:
    with pytest.raises(PlanError, match="declined"):
        plan_for(captured("mean"), pictures(16), floor="kl<=1e-12", minutes=0.02)


def test_a_search_leaves_the_weights_as_they_are(
    program: ExportedProgram, images: torch.Tensor
) -> None:
    before = {name: weight.clone() for name, weight in program.state_dict.items()}
    assert Judge(program, images, None).noise().mean < 1e-6
    for name, weight in program.state_dict.items():
        assert weight.dtype == before[name].dtype
        assert torch.equal(weight, before[name])


def test_a_floor_below_the_models_own_noise_is_refused(
    program: ExportedProgram, images: torch.Tensor
) -> None:
    with pytest.raises(PlanError, match="rounding of the dense model"):
        plan_for(program, images, target="flops<=0.7", floor="kl<=1e-30")


def test_a_floor_that_does_not_hold_at_the_target_is_told(captured: Captured) -> None:
    with pytest.raises(PlanError, match="cannot both be met"):
        plan_for(
            captured("mean"), pictures(16), target="flops<=0.75", floor="kl<=1e-9", minutes=0.02
        )


def test_wrong_requests(program: ExportedProgram, images: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="target or a floor"):
        plan_for(program, images)
    with pytest.raises(UsageError, match="needs labels"):
        plan_for(program, images, floor="top1>=0.5")
    with pytest.raises(ModelError, match="at least 8"):
        plan_for(program, images[:4], target="flops<=0.7")
    wrong = torch.zeros(24, dtype=torch.int64)
    with pytest.raises(PlanError, match="dense model itself"):
        plan_for(program, images, floor="top1>=0.999", labels=wrong + 3)


def test_recipes_reach_their_ratio_without_layers_too(program: ExportedProgram) -> None:
    recipes = Recipes(program)
    wanted = [((), 0.55), (("block[1].mlp",), 0.55), (("block[1]", "block[2].attention"), 0.4)]
    for dropped, ratio in wanted:
        steps = recipes.steps(Recipe("tome", None, dropped), ratio)
        plan = Plan(method="test", steps=steps, fingerprint=recipes.sites.fingerprint)
        told = macs(apply_plan(program, plan)) / macs(program)
        assert recipes.ratio(steps) == pytest.approx(told, abs=1e-9)
        assert told == pytest.approx(ratio, rel=0.011)
    assert json.dumps(recipes.droppable()).count("block[0]") == 0
    assert recipes.joined(("block[1].mlp",), "block[1]") == ("block[1]",)
    assert recipes.joined(("block[1]",), "block[1].mlp") is None
