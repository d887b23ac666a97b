from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import prunepass
from prunepass.analyse.flops import macs
from prunepass.analyse.projections import projections
from prunepass.apply import apply_plan
from prunepass.errors import PlanError, PrunepassError, UnsupportedGraph, UsageError
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.input_shares import STEP, allocate, changed, record_blocks
from prunepass.planners.sparsity import Layer, plan_inputs
from prunepass.plans import Plan
from tests.tiny_decoders import captured, outputs, texts


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


# The layers of a block and their sizes; k and v of the tiny Llama are half as large as q and o.
LAYERS = [
    Layer(f"block[0].{name}", "magnitude", inputs, outputs)
    for name, inputs, outputs in (
        ("attention.q", 32, 32), ("attention.k", 32, 16), ("attention.v", 32, 16),
        ("attention.o", 32, 32), ("mlp.gate", 32, 56), ("mlp.up", 32, 56), ("mlp.down", 56, 32),
    )
]  # fmt: skip


def mean_keep(shares: dict[str, float]) -> float:
    sizes = {layer.site: layer.inputs * layer.outputs for layer in LAYERS}
    return sum(sizes[s] * k for s, k in shares.items()) / sum(sizes.values())


def test_w10_greedy_shares_meet_the_target_and_grow_with_it() -> None:
    runs = record_blocks(captured("llama"), texts(6))
    found = [allocate(runs, 0, LAYERS, keep=keep) for keep in (0.75, 0.6, 0.5, 0.35)]
    # What one step saves, of whatever layer.
    step = STEP * 32 * 32 / sum(layer.inputs * layer.outputs for layer in LAYERS)
    for keep, shares in zip((0.75, 0.6, 0.5, 0.35), found, strict=True):
        assert keep - step - 1e-9 < mean_keep(shares) <= keep + 1e-9
        assert all(0.0 < k <= 1.0 for k in shares.values())
    for more, less in pairwise(found):
        assert all(less[site] <= more[site] for site in more)


def test_greedy_is_no_worse_than_uniform_on_what_it_was_fitted_to() -> None:
    program = captured("llama")
    runs = record_blocks(program, texts(6))
    nodes = {layer.site: layer for layer in LAYERS}
    sites = projections(runs.module.graph)
    greedy = allocate(runs, 0, LAYERS, keep=0.5)

    def error(shares: dict[str, float]) -> float:
        given = {sites[s]: ("magnitude", k) for s, k in shares.items()}
        return changed(runs.output(0, 0, given), runs.output(0, 0, {}))

    assert error(greedy) < error(dict.fromkeys(nodes, 0.5))


def test_runs_of_a_block_say_what_the_program_says() -> None:
    program = captured("llama")
    runs = record_blocks(program, texts(3))
    stream = runs.output(1, 0, {})
    assert stream.shape == (3, 12, 32)
    masked = runs.output(
        1, 0, {n: ("magnitude", 0.3) for n in runs.blocks[1] if "linear" in n.name}
    )
    assert changed(masked, stream) > 0.0 == changed(stream, stream)


def test_calibration_makes_shares_and_thresholds() -> None:
    program = captured("llama", torch.float64)
    plan = plan_inputs(program, keep=0.5, calibration=texts(4), smallest=0, step=0.1)
    assert plan.notes["allocation"] == "greedy"
    assert len({step.keep for step in plan.steps}) > 1
    gated = plan_inputs(
        program, keep=0.5, calibration=texts(4), smallest=0, gate="threshold", step=0.1
    )
    assert all(isinstance(step.options["threshold"], float) for step in gated.steps)
    assert outputs(apply_plan(program, gated), texts(1, tokens=1))[0].isfinite().all()


def test_layers_that_would_keep_nearly_all_stay_dense_and_the_plan_says_so() -> None:
    program = captured("llama")
    near = plan_inputs(program, keep=0.95, smallest=0)
    assert {step.keep for step in near.steps} == {1.0}
    assert near.notes["macs_ratio"] == 1.0
    assert near.notes["dense"] == (
        f"{len(near.steps)} layers would keep more than 0.9 of their inputs, too many to gain"
    )
    asked = plan_inputs(program, keep=0.95, smallest=0, largest=1.0)
    assert {step.keep for step in asked.steps} == {0.95}
    assert "dense" not in asked.notes
    # Shares found on texts differ: those above the limit go, the others stay as they were found.
    greedy, every = (
        plan_inputs(program, keep=0.8, calibration=texts(3), smallest=0, largest=x, step=0.05)
        for x in (0.9, 1.0)
    )
    found = {step.site: step.keep for step in every.steps}
    assert any(0.9 < keep < 1.0 for keep in found.values())
    for step in greedy.steps:
        assert step.keep == (1.0 if found[step.site] > 0.9 else found[step.site])


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "nothing to calibrate on"),
        ([[1, 2], []], "text 1 cannot be used"),
        ([[1, 40]], "text 0 cannot be used"),
        ([[-1]], "text 0 cannot be used"),
        ([[0.5, 1.0]], "text 0 cannot be used"),
        ([[1] * 8193], "text 0 cannot be used"),
    ],
)
def test_texts_that_cannot_be_used(calibration: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        plan_inputs(captured("llama"), keep=0.5, calibration=calibration, smallest=0)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"method": "wnia", "keep": 0.5}, UsageError),
        ({"method": "wina"}, UsageError),
        ({"method": "wina", "flops": 0.5}, UsageError),
        ({"method": "wina", "keep": 0.0}, PlanError),
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


def test_rotations_say_what_they_cost() -> None:
    plan = plan_inputs(captured("llama"), keep=0.5, smallest=0, rotate=True)
    # 3 x 32^2 of 18432 dense MACs: four parts, and behind the last one nothing is turned.
    assert "rotations add 16.7% of the dense MACs" in str(plan.notes["rotation"])
    turned = apply_plan(captured("llama"), plan)
    ratio = macs(turned) / macs(captured("llama"))
    assert ratio == pytest.approx(plan.notes["macs_ratio"], abs=2e-3)
    dear = plan_inputs(captured("llama"), keep=0.9, smallest=0, rotate=True)
    assert "leave them out" in str(dear.notes["rotation"])
