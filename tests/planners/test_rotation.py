from __future__ import annotations

import pytest

from prunepass.analyse.flops import macs
from prunepass.apply import apply_plan
from prunepass.planners.rotation import rotation_note, rotations, turning_macs
from prunepass.planners.sparsity import plan_inputs
from tests.tiny_decoders import captured


def test_each_part_is_turned_by_the_layer_that_weighs_columns() -> None:
    sites = [step.site for step in rotations(captured("llama"))]
    parts = [f"block[{i}].{layer}" for i in range(2) for layer in ("attention.k", "mlp.gate")]
    assert sites == parts


def test_behind_the_last_part_nothing_is_turned() -> None:
    program = captured("llama")
    assert turning_macs(program, rotations(program)) == 3 * 32**2
    assert turning_macs(program, []) == 0


def test_rotations_say_what_they_cost() -> None:
    plan = plan_inputs(captured("llama"), keep=0.5, smallest=0, rotate=True)
    # 3 x 32^2 of 18432 dense MACs: four parts, and behind the last one nothing is turned.
    assert "rotations add 16.7% of the dense MACs" in str(plan.notes["rotation"])
    turned = apply_plan(captured("llama"), plan)
    ratio = macs(turned) / macs(captured("llama"))
    assert ratio == pytest.approx(plan.notes["macs_ratio"], abs=2e-3)
    dear = plan_inputs(captured("llama"), keep=0.9, smallest=0, rotate=True)
    assert "leave them out" in str(dear.notes["rotation"])


def test_a_note_says_what_the_same_macs_would_read() -> None:
    # Half of the inputs saves 0.4 of the MACs; 0.1 of them is an eighth of all inputs.
    assert "read 0.625 of the inputs instead of 0.500" in rotation_note(0.6, 0.1, 0.5)
    assert "nothing is saved" in rotation_note(1.0, 0.1, 1.0)
    assert "leave them out" in rotation_note(0.95, 0.1, 0.9)
