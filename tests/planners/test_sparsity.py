from __future__ import annotations

from typing import Any

import pytest
import torch

import prunepass
from prunepass.analyse.flops import macs
from prunepass.analyse.projections import projections, role_of
from prunepass.apply import apply_plan, apply_with_records
from prunepass.errors import PlanError, PrunepassError, UnsupportedGraph, UsageError
from prunepass.passes.rotate_inputs import rotate_inputs
from prunepass.planners.block_runs import record_blocks
from prunepass.planners.decoder_texts import text_inputs
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Plan
from tests.tiny_decoders import captured, decoder, outputs, texts


def rules(plan: Plan) -> dict[str, str]:
    return {step.site.rpartition(".")[2]: step.rule for step in plan.steps}


@pytest.mark.parametrize("method", INPUT_METHODS)
def test_every_method_makes_a_plan_that_is_carried_out(method: str) -> None:
    program = captured("llama")
    plan = prunepass.plan(program, method=method, keep=0.5, options={"smallest": 0})
    smaller = prunepass.apply_plan(program, plan)
    assert macs(smaller) / macs(program) == pytest.approx(plan.notes["macs_ratio"], abs=2e-3)
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    found = outputs(smaller, texts(1, tokens=1))[0]
    assert found.isfinite().all()
    assert not torch.equal(found, outputs(program, texts(1, tokens=1))[0])


def test_wina_weighs_by_columns_what_was_published_or_what_is_asked() -> None:
    plain = rules(plan_inputs(captured("llama"), keep=0.5, smallest=0))
    assert [role for role, rule in plain.items() if rule == "weight-norm"] == ["k", "gate"]
    every = plan_inputs(captured("llama"), keep=0.5, smallest=0, informed=("q", "down"))
    assert [r for r, rule in rules(every).items() if rule == "weight-norm"] == ["q", "down"]
    teal = plan_inputs(captured("llama"), method="teal", keep=0.5, smallest=0)
    assert set(rules(teal).values()) == {"magnitude"}
    fused = rules(plan_inputs(captured("phi3"), keep=0.5, smallest=0))
    assert [r for r, rule in fused.items() if rule == "weight-norm"] == ["qkv", "gate_up"]


@pytest.mark.parametrize(("keep", "rows"), [(0.75, 1), (0.5, 1), (0.35, 2), (0.1, 7)])
def test_more_rows_are_sparse_the_less_each_of_them_reads(keep: float, rows: int) -> None:
    plan = plan_inputs(captured("llama"), keep=keep, smallest=0)
    assert {step.options["rows"] for step in plan.steps} == {rows}


def test_cats_is_for_gated_mlps() -> None:
    plan = plan_inputs(captured("llama"), method="cats", keep=0.5, smallest=0)
    assert rules(plan) == {"down": "gate-activation"}
    with pytest.raises(UnsupportedGraph, match="'cats' can read fewer inputs"):
        plan_inputs(captured("phi"), method="cats", keep=0.5, smallest=0)


def test_r_sparse_spends_what_is_kept_on_both_parts() -> None:
    plan = plan_inputs(captured("llama"), method="r-sparse", keep=0.5, smallest=0)
    step = next(s for s in plan.steps if s.site.endswith("gate"))
    assert step.keep == pytest.approx(0.4)
    rank: Any = step.options["rank"]
    assert rank * (32 + 56) <= 0.1 * 32 * 56


def test_calibration_makes_shares_and_thresholds() -> None:
    program = captured("llama", torch.float64)
    plan = plan_inputs(program, keep=0.5, calibration=texts(4), smallest=0, step=0.1)
    assert plan.notes["allocation"] == "greedy"
    assert len({step.keep for step in plan.steps}) > 1
    gated = plan_inputs(
        program, keep=0.5, calibration=texts(4), smallest=0, gate="threshold", step=0.1
    )
    limits = {step.site: step.options.get("threshold") for step in gated.steps}
    for step in gated.steps:
        assert isinstance(limits[step.site], float) == (step.keep < 1.0)
    assert outputs(apply_plan(program, gated), texts(1, tokens=1))[0].isfinite().all()


@pytest.mark.parametrize("asked", [{"keep": 0.5, "smallest": 1}, {"keep": 1.0, "smallest": 0}])
def test_a_layer_that_reads_all_of_its_inputs_has_no_threshold(asked: dict[str, Any]) -> None:
    program = captured("llama")
    plan = plan_inputs(program, calibration=texts(2), gate="threshold", **asked)
    assert {step.keep for step in plan.steps} == {1.0}
    _, (record,) = apply_with_records(program, plan)
    assert record.applied == ()
    assert set(record.left.values()) == {"it keeps all of its inputs"}


def test_layers_that_would_not_gain_stay_dense_and_the_plan_says_so() -> None:
    program = captured("llama")
    plan = plan_inputs(program, keep=0.5, smallest=1)
    assert {step.keep for step in plan.steps} == {1.0}
    assert plan.notes["macs_ratio"] == 1.0
    assert plan.notes["dense"] == (
        f"{len(plan.steps)} layers would save less than finding their inputs costs"
    )
    some = plan_inputs(program, keep=0.5, smallest=1000)
    assert [s for s in plan.steps if s not in some.steps] == [
        s for s in plan.steps if s.site.endswith((".k", ".v"))
    ]
    assert some.notes["dense"] == (
        "4 layers are too small to gain; 10 layers would save less than finding their inputs costs"
    )
    asked = plan_inputs(program, keep=0.5, smallest=0)
    assert {step.keep for step in asked.steps} == {0.5}
    assert "dense" not in asked.notes


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"method": "wnia", "keep": 0.5}, UsageError),
        ({"method": "wina"}, UsageError),
        ({"method": "wina", "flops": 0.5}, UsageError),
        ({"method": "wina", "keep": 0.0}, PlanError),
        ({"method": "wina", "keep": True}, PlanError),
        ({"method": "wina", "keep": 2}, PlanError),
        ({"method": "wina", "keep": "0.5"}, UsageError),
        ({"method": "wina", "keep": 0.5, "at": [0]}, UsageError),
        ({"method": "wina", "keep": 0.5, "action": "merge"}, UsageError),
        ({"method": "wina", "keep": 0.5, "options": {"smalest": 0}}, UsageError),
        ({"method": "wina", "keep": 0.5, "options": {"keep": 0.4}}, UsageError),
        ({"method": "wina", "keep": 1.5}, PlanError),
        ({"method": "wina", "keep": 0.001, "options": {"smallest": 0}}, PlanError),
        ({"method": "wina", "keep": 0.5}, UnsupportedGraph),
        ({"method": "wina", "keep": 0.5, "options": {"gate": "threshold"}}, UsageError),
        ({"method": "wina", "keep": 0.5, "options": {"gate": "topk"}}, UsageError),
        ({"method": "tome", "calibration": [[1, 2]]}, UsageError),
    ],
)
def test_refusals_are_three_lines(asked: dict[str, Any], error: type[PrunepassError]) -> None:
    with pytest.raises(error) as caught:
        prunepass.plan(captured("llama"), **asked)
    assert len(str(caught.value).splitlines()) == 3


def test_a_model_is_no_program() -> None:
    with pytest.raises(UsageError, match="made for a program") as caught:
        prunepass.plan(decoder("llama"), method="wina", keep=0.5)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "asked",
    [
        {"informed": "gaet"},
        {"informed": ["k", "x"]},
        {"informed": 5},
        {"rows": 0},
        {"rows": "2"},
        {"rows": 1.5},
        {"smallest": -5},
        {"smallest": "0"},
        {"smallest": True},
        {"device": "tpu"},
    ],
)
def test_options_that_say_nothing_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        plan_inputs(captured("llama"), **{"keep": 0.5, "smallest": 0, **asked})
    assert len(str(caught.value).splitlines()) == 3


def test_informed_layers_are_those_that_are_named() -> None:
    program = captured("llama")
    for informed, roles in ((None, {"k", "gate"}), ((), set()), ("gate", {"gate"}), (["q"], {"q"})):
        plan = plan_inputs(program, keep=0.5, smallest=0, informed=informed)
        assert {role_of(s.site) for s in plan.steps if s.rule == "weight-norm"} == roles


def test_a_method_without_its_layers_says_which_there_are() -> None:
    with pytest.raises(UnsupportedGraph, match="no linear layer where 'cats'") as caught:
        plan_inputs(captured("phi3"), method="cats", keep=0.5, smallest=0)
    assert "gate_up" in str(caught.value)


@pytest.mark.parametrize("options", [{"rotate": True}, {"method": "r-sparse"}, {}])
def test_thresholds_keep_on_the_texts_what_steps_say(options: dict[str, Any]) -> None:
    """Of the program that will run: its inputs are rotated ones where that is planned."""
    program = captured("llama", torch.float64)
    plan = plan_inputs(
        program, keep=0.5, calibration=texts(8), smallest=0, gate="threshold", step=0.2, **options
    )
    runs_on = program
    if options.get("rotate"):
        runs_on = rotate_inputs(program, [s for s in plan.steps if s.kind == "rotate_inputs"])[0]
    runs = record_blocks(runs_on, text_inputs(program, texts(8)))
    nodes = projections(runs.module.graph)
    checked = 0
    for step in plan.steps:
        if step.kind != "sparsify_inputs" or step.keep >= 1.0:
            continue
        node = nodes[step.site]
        values: Any = [v[node.args[0]] for v in runs.values]  # type: ignore[index]
        scores = torch.cat([runs.score(node, x, step.rule).reshape(-1) for x in values])
        above = float((scores > step.options["threshold"]).double().mean())
        assert above == pytest.approx(step.keep, abs=0.01), step.site
        checked += 1
    assert checked > 5
