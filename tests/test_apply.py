from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan, apply_with_records
from prunepass.errors import PlanError
from prunepass.graph.text import text
from prunepass.plans import Plan, Step
from tests.conftest import Captured, Reduced
from tests.steps import step
from tests.tiny_models import images

STEPS = [step("block[0].attention", "received-attention", 16), step("block[1].output", "random", 9)]


def plan(captured: Captured, steps: list[Step], name: str = "class") -> Plan:
    return Plan(method="by hand", steps=tuple(steps), fingerprint=sites(captured(name)).fingerprint)


def test_a_plan_is_carried_out_and_recorded(captured: Captured, reduced: Reduced) -> None:
    program = captured("class")
    before = text(program)
    result, (record,) = apply_with_records(program, plan(captured, STEPS))
    assert text(result) == text(reduced("class", STEPS)[0])
    assert text(program) == before
    assert record.applied == ("block[0].attention", "block[1].output")
    assert dict(record.tokens) == {"block[0].attention": (21, 16), "block[1].output": (16, 9)}
    again = plan(captured, STEPS[:1])
    with pytest.raises(PlanError, match="another model"):
        apply_plan(result, again)


def test_a_plan_read_from_json_does_the_same(captured: Captured, reduced: Reduced) -> None:
    stored = Plan.from_json(plan(captured, STEPS[:1]).to_json())
    result = apply_plan(captured("class"), stored)
    x = images(3, seed=70)
    expected = reduced("class", STEPS[:1])[0].module(check_guards=False)(x)
    assert torch.equal(result.module(check_guards=False)(x), expected)


@pytest.mark.parametrize("name", ["mean", "rotary"])
def test_a_plan_for_another_model_is_refused(captured: Captured, name: str) -> None:
    with pytest.raises(PlanError, match="another model") as e:
        apply_plan(captured(name), plan(captured, STEPS))
    assert sites(captured(name)).fingerprint in str(e.value.found)


def test_a_planned_step_that_matches_nothing_is_refused(captured: Captured) -> None:
    wrong = plan(captured, [step("block[7].attention", "random", 9)])
    with pytest.raises(PlanError, match=r"unknown site 'block\[7\]\.attention'"):
        apply_plan(captured("class"), wrong)


def test_an_empty_plan_changes_nothing(captured: Captured) -> None:
    program = captured("class")
    result, records = apply_with_records(program, replace(plan(captured, STEPS), steps=()))
    assert result is program
    assert records == []
