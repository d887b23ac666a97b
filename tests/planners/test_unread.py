"""Not computing what no output reads changes no output."""

from __future__ import annotations

import pytest
import torch

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.errors import PrunepassError
from prunepass.passes.reduce_tokens import draft
from prunepass.planners.budget import plan
from prunepass.planners.request import unread_step
from prunepass.plans import Plan
from tests.conftest import Captured
from tests.tiny_models import images


@pytest.mark.parametrize("name", ["class", "distilled", "unfused", "parallel", "post_norm"])
def test_the_output_stays_as_it_was(captured: Captured, name: str) -> None:
    program = captured(name)
    found = sites(program)
    assert found.reads_prefix_only
    x = images(3, seed=3)
    module, _ = draft(program, [unread_step("block[2].attention", found)])
    torch.testing.assert_close(
        module(x), program.module(check_guards=False)(x), rtol=1e-10, atol=1e-12
    )


def test_sealed_it_costs_less_and_says_the_same(captured: Captured) -> None:
    program = captured("class")
    made = plan(program, method="tome", flops=0.9)
    smaller = apply_plan(program, made)
    assert macs(smaller) < 0.9 * macs(program)
    for batch in (1, 2, 5):
        x = images(batch, seed=batch)
        torch.testing.assert_close(
            smaller.module(check_guards=False)(x),
            program.module(check_guards=False)(x),
            rtol=1e-10,
            atol=1e-12,
        )


@pytest.mark.parametrize("name", ["mean", "registers", "attention_pool", "late_class"])
def test_refused_where_image_tokens_are_read(captured: Captured, name: str) -> None:
    program = captured(name)
    found = sites(program)
    assert not found.reads_prefix_only
    step = unread_step("block[2].attention", found) if found.prefix_tokens else None
    if step is None:
        with pytest.raises(PrunepassError, match="keep"):
            unread_step("block[2].attention", found)
        return
    with pytest.raises(PrunepassError):
        apply_plan(program, Plan(method="x", steps=(step,), fingerprint=found.fingerprint))


def test_refused_before_the_last_attention(captured: Captured) -> None:
    program = captured("class")
    found = sites(program)
    step = unread_step("block[1].attention", found)
    with pytest.raises(PrunepassError):
        apply_plan(program, Plan(method="x", steps=(step,), fingerprint=found.fingerprint))
