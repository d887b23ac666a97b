"""A plan that only leaves out what is not read."""

from __future__ import annotations

import torch

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.planners.budget import plan
from prunepass.rules.table import UNREAD
from tests.conftest import Captured
from tests.tiny_models import images


def test_the_last_attention_is_narrowed_as_planned(captured: Captured) -> None:
    program = captured("class")
    assert sites(program).reads_prefix_only
    made = plan(program, flops=0.86)
    assert [step.rule for step in made.steps] == [UNREAD]
    smaller = apply_plan(program, made)
    assert abs(macs(smaller) / macs(program) - float(str(made.notes["macs_ratio"]))) < 1e-3
    x = images(3, seed=8)
    torch.testing.assert_close(
        smaller.module(check_guards=False)(x), program.module(check_guards=False)(x),
        rtol=1e-10, atol=1e-12,
    )  # fmt: skip
