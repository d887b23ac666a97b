"""What a plan is said to cost is what the rewritten program costs."""

from __future__ import annotations

import pytest

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.planners.budget import cost_of, plan, priced
from prunepass.planners.methods import METHODS
from prunepass.planners.request import ask
from prunepass.rules.table import rule
from tests.conftest import Captured

ON_CLASS = [
    ("class", name, None)
    for name, row in METHODS.items()
    if "scan_output" not in rule(row.rule).needs
]
ELSEWHERE = [
    ("unfused", "tome", None),  # the last attention is written out: its result is cut
    ("distilled", "weighted-merge", "drop"),
    ("registers", "zero-tprune", None),
    ("attention_pool", "tome", None),
    ("late_class", "key-norm", "merge"),
]


@pytest.mark.parametrize(("model", "name", "action"), [*ON_CLASS, *ELSEWHERE])
def test_predicted_macs_are_exact(
    captured: Captured, model: str, name: str, action: str | None
) -> None:
    program = captured(model)
    found = sites(program)
    flops = 0.71 if found.reads_prefix_only else 0.9
    request = ask(found, method_name=name, action=action)
    cost = cost_of(program, found, request)
    made = plan(program, method=name, flops=flops, action=action)
    assert len(made.steps) >= 2
    predicted = cost.macs(priced(made.steps, cost.tokens, found))
    assert cost.dense == macs(program)
    assert predicted == macs(apply_plan(program, made))
    assert made.notes["macs_ratio"] == round(predicted / cost.dense, 4)
