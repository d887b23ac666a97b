"""Searching a schedule on pictures."""

from __future__ import annotations

import random
import time

import pytest
from torch.export import ExportedProgram

from prunepass.errors import ModelError, PlanError
from prunepass.measure.fidelity import kl
from prunepass.passes.reduce_tokens import draft
from prunepass.planners.budget import plan
from prunepass.search.schedule import Found, search
from tests.conftest import Captured
from tests.tiny_models import images

PICTURES = images(12, seed=9)


def mean_kl(program: ExportedProgram, found: Found, rows: list[int]) -> float:
    """Of a found plan on some of the pictures."""
    x = PICTURES[rows]
    dense = program.module(check_guards=False)(x)
    return float(kl(dense, draft(program, found.plan.steps)[0](x)).mean())


def halves(seed: int) -> tuple[list[int], list[int]]:
    order = list(range(len(PICTURES)))
    random.Random(seed).shuffle(order)
    return order[:6], order[6:]


@pytest.fixture(scope="module")
def found(captured: Captured) -> Found:
    return search(captured("mean"), PICTURES, method="weighted-merge", flops=0.85, seed=3)


def test_never_worse_than_the_default_where_it_chooses(captured: Captured, found: Found) -> None:
    program = captured("mean")
    default = plan(program, method="weighted-merge", flops=0.85)
    x = PICTURES[halves(3)[0]]
    dense = program.module(check_guards=False)(x)
    loss = float(kl(dense, draft(program, default.steps)[0](x)).mean())
    assert found.tried > 1
    assert found.kl_fit <= loss + 1e-12


def test_what_it_tells_was_not_chosen_on(captured: Captured, found: Found) -> None:
    chosen, unseen = halves(3)
    program = captured("mean")
    assert found.kl_fit == pytest.approx(mean_kl(program, found, chosen), rel=1e-9, abs=1e-12)
    assert found.kl_unseen == pytest.approx(mean_kl(program, found, unseen), rel=1e-9, abs=1e-12)
    assert found.kl_error > 0
    assert 0 <= found.agreement_unseen <= 1
    assert found.plan.notes["kl_unseen"] == round(found.kl_unseen, 6)
    assert found.plan.notes["search"] == f"{found.tried} schedules on 6 pictures"
    assert found.plan.notes["macs_ratio"] == pytest.approx(0.85, rel=0.01, abs=0.0)


def test_the_same_seed_finds_the_same(captured: Captured) -> None:
    steps = []
    order: list[int] = []
    for _ in range(2):
        made = search(
            captured("mean"), PICTURES, method="key-norm", flops=0.85, seed=5,
            progress=order.append,
        )  # fmt: skip
        steps.append((made.plan, made.tried, made.kl_fit, made.kl_unseen))
    assert steps[0] == steps[1]
    # Places are drawn: two or three of three blocks, so the published one and at most four more.
    assert 2 <= steps[0][1] <= 5
    assert order == [1] * (2 * steps[0][1])


def test_drawn_places_stay_among_the_given(captured: Captured) -> None:
    made = search(captured("mean"), PICTURES, method="key-norm", flops=0.9, at=[0, 1])
    assert made.tried == 1
    assert {step.site for step in made.plan.steps} <= {"block[0].output", "block[1].output"}


def test_no_new_schedule_after_the_time(captured: Captured) -> None:
    start = time.monotonic()
    made = search(captured("mean"), PICTURES, method="weighted-merge", flops=0.85, minutes=1e-9)
    assert made.tried == 1
    assert time.monotonic() - start < 60
    default = plan(captured("mean"), method="weighted-merge", flops=0.85)
    assert made.plan.steps == default.steps


def test_too_few_pictures(captured: Captured) -> None:
    with pytest.raises(ModelError, match="at least 4 pictures"):
        search(captured("mean"), PICTURES[:3], flops=0.8)


def test_a_budget_out_of_reach(captured: Captured) -> None:
    with pytest.raises(PlanError, match="cannot reach"):
        search(captured("mean"), PICTURES[:4], method="tome", flops=0.1)


def test_an_odd_picture_out_of_a_batch(captured: Captured) -> None:
    # Batches hold 25: of 53 pictures 26 choose, the last of them by itself.
    many = images(53, seed=1)
    made = search(captured("mean"), many, method="tome", flops=0.9, minutes=1e-9)
    assert made.tried == 1
    assert made.plan.notes["search"] == "1 schedules on 26 pictures"
