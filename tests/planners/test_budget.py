"""From a budget to a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.capturing import capture
from prunepass.errors import PlanError, UnsupportedGraph, UsageError
from prunepass.planners.budget import TOLERANCE, cost_of, plan, priced
from prunepass.planners.methods import DOWNSAMPLE, METHODS, method
from prunepass.planners.request import ask
from prunepass.plans import Plan, Step
from prunepass.rules.table import UNREAD
from tests.conftest import Captured
from tests.planners.plain_vit import PlainVit
from tests.tiny_models import REFUSED


@pytest.fixture(scope="module")
def deep() -> ExportedProgram:
    """Five blocks, 82 tokens."""
    model = PlainVit(depth=5, grid=9, patch=4, channels=24, heads=3, classes=7)
    return capture(model, (model.images(2),))


@pytest.fixture(scope="module")
def deit_s() -> ExportedProgram:
    """The geometry of DeiT-S: 12 blocks, 197 tokens, 384 channels, 6 heads."""
    model = PlainVit(depth=12, grid=14, patch=16, channels=384, heads=6, classes=1000)
    return capture(model, (model.images(1),))


def counts(made: Plan) -> list[int | float]:
    return [step.keep for step in made.steps if step.rule != UNREAD]


def test_zero_tprune_on_deit_s_is_the_published_schedule(deit_s: ExportedProgram) -> None:
    made = plan(deit_s, method="zero-tprune")
    assert counts(made) == [187, 160, 120, 77, 67]
    assert [step.site for step in made.steps] == [f"block[{b}].output" for b in (0, 2, 5, 8, 10)]
    assert [step.options["iterations"] for step in made.steps] == [30, 5, 5, 1, 1]
    assert [step.options["similar"] for step in made.steps] == [10] * 5
    # 3.076 GMAC as published: without patch embedding, head and scoring.
    found = sites(deit_s)
    cost = cost_of(deit_s, found, ask(found, method_name="zero-tprune"))
    reductions = priced(made.steps, cost.tokens, found)
    outside = 196 * 3 * 16 * 16 * 384 + 384 * 1000
    free = cost.macs([replace(r, rule="random", options={}) for r in reductions])
    assert cost.dense == macs(deit_s) == 4_598_882_304
    assert round((free - outside) / 1e9, 3) == 3.076
    assert 0 < cost.macs(reductions) - free < 0.01 * cost.dense
    assert made.notes["macs_ratio"] == round(cost.macs(reductions) / cost.dense, 4)


@pytest.mark.parametrize("flops", [0.75, 0.5])
@pytest.mark.parametrize("name", ["weighted-merge", "tome", "zero-tprune", "key-norm"])
def test_a_plan_meets_its_budget(deep: ExportedProgram, name: str, flops: float) -> None:
    made = plan(deep, method=name, flops=flops)
    ratio = made.notes["macs_ratio"]
    assert isinstance(ratio, float)
    assert ratio == pytest.approx(flops, rel=1.01 * TOLERANCE, abs=0.0)
    assert made.method == name
    assert made.fingerprint == sites(deep).fingerprint
    kept = counts(made)
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)  # steps that remove nothing are left out
    assert made.steps[-1].rule == UNREAD
    assert Plan.from_json(made.to_json()) == made


def test_a_late_schedule_reaches_what_its_sites_allow(captured: Captured) -> None:
    # Exponent 1.55: the first site gives a small share until the strength is large.
    made = plan(captured("registers"), method="weighted-merge", flops=0.7, exponent=1.2)
    ratio = made.notes["macs_ratio"]
    assert isinstance(ratio, float)
    assert ratio == pytest.approx(0.7, rel=1.01 * TOLERANCE, abs=0.0)


@pytest.mark.parametrize("name", ["weighted-merge", "tome", "zero-tprune", "random"])
def test_a_budget_out_of_reach(captured: Captured, name: str) -> None:
    with pytest.raises(PlanError, match=r"cannot reach 0\.050 of the MACs") as caught:
        plan(captured("mean"), method=name, flops=0.05)
    assert caught.value.found is not None
    assert "at its strongest" in caught.value.found


@pytest.mark.parametrize("flops", [0.0, -0.5, 1.0001, 65.0, float("nan"), float("inf")])
def test_a_budget_outside_its_range(captured: Captured, flops: float) -> None:
    with pytest.raises(PlanError, match="the budget"):
        plan(captured("class"), method="tome", flops=flops)


@pytest.mark.parametrize("name", ["tome", "zero-tprune"])
def test_the_whole_budget_removes_nothing(captured: Captured, name: str) -> None:
    made = plan(captured("class"), method=name, flops=1.0)
    assert made.steps == ()
    assert made.notes == {"macs_ratio": 1.0, "flops": 1.0}


def test_a_method_without_a_published_schedule_needs_a_budget(captured: Captured) -> None:
    with pytest.raises(PlanError, match="needs a budget"):
        plan(captured("class"), method="tome")


def test_an_unknown_method_lists_the_nearest_first(captured: Captured) -> None:
    with pytest.raises(UsageError) as caught:
        plan(captured("class"), method="zero-prune", flops=0.7)
    assert caught.value.fix is not None
    assert caught.value.fix.startswith("one of zero-tprune, ")
    assert all(name in caught.value.fix for name in [*METHODS, DOWNSAMPLE])
    assert method("tome").name == "tome"


def test_blocks_can_be_chosen(captured: Captured) -> None:
    made = plan(captured("mean"), method="key-norm", flops=0.9, at=[1])
    assert [step.site for step in made.steps] == ["block[1].output"]
    made = plan(captured("mean"), method="tome", flops=0.9, at=[2, 0, 2])
    assert made.steps
    assert {step.site for step in made.steps} <= {"block[0].attention", "block[2].attention"}


@pytest.mark.parametrize("block", [3, -1, 99])
def test_unknown_blocks(captured: Captured, block: int) -> None:
    with pytest.raises(PlanError, match=f"block {block}") as caught:
        plan(captured("mean"), method="tome", flops=0.9, at=[0, block])
    assert caught.value.found == "blocks 0 to 2 can"


def test_no_blocks_are_no_plan(captured: Captured) -> None:
    with pytest.raises(UnsupportedGraph, match="no block"):
        plan(captured("mean"), method="tome", flops=0.9, at=[])


@pytest.mark.parametrize("action", ["drop", "merge"])
def test_the_action_can_be_chosen(captured: Captured, action: str) -> None:
    made = plan(captured("mean"), method="tome", flops=0.9, action=action)
    assert made.steps
    assert {step.action for step in made.steps} == {action}


@pytest.mark.parametrize("name", ["class", "distilled"])
def test_what_nobody_reads_goes_first(captured: Captured, name: str) -> None:
    made = plan(captured(name), method="tome", flops=0.9)
    (step,) = made.steps
    assert step == Step(
        kind="reduce_tokens",
        site="block[2].attention",
        rule=UNREAD,
        keep=sites(captured(name)).prefix_tokens,
    )
    if name == "class":
        made = plan(captured(name), method="tome", flops=0.7)
        assert [step.rule for step in made.steps] == ["tome", "tome", UNREAD]


@pytest.mark.parametrize("name", ["mean", "registers", "attention_pool", "late_class"])
def test_no_unread_step_where_image_tokens_are_read(captured: Captured, name: str) -> None:
    made = plan(captured(name), method="key-norm", flops=0.88)
    assert made.steps
    assert all(step.rule == "key-norm" for step in made.steps)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_refuse_say_why(captured: Captured, name: str) -> None:
    program = captured(name)
    if sites(program).reducible("attention"):
        return  # some refuse at a few sites only
    with pytest.raises(UnsupportedGraph, match="no site where 'tome' can reduce") as caught:
        plan(program, method="tome", flops=0.9)
    assert caught.value.found


class _Segmenter(PlainVit):
    """A ViT that says something of every token."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tokens(images))


@pytest.mark.parametrize("name", ["weighted-merge", "received-attention"])
def test_all_tokens_come_back_where_outputs_carry_them(name: str) -> None:
    model = _Segmenter(depth=4, grid=6, patch=4, channels=24, heads=3, classes=40)
    program = capture(model, (model.images(2),))
    with pytest.raises(UnsupportedGraph, match=r"--option restore=block\[3\]\.output"):
        plan(program, method=name, flops=0.75)
    made = plan(program, method=name, flops=0.75, options={"restore": "block[3].output"})
    fewer = apply_plan(program, made)
    assert made.notes["macs_ratio"] == pytest.approx(macs(fewer) / macs(program), abs=1e-4)
    assert made.notes["macs_ratio"] == pytest.approx(0.75, rel=TOLERANCE)
    x = model.images(3)
    assert fewer.module()(x).shape == model(x).shape
