"""Latency predicted from a table, and plans made for it: by formulas in place of engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.backends.eager import EagerBackend
from prunepass.capturing import capture
from prunepass.errors import PlanError
from prunepass.plans import Step
from prunepass.search.decide import plan_for
from prunepass.search.engines import EngineTimer
from prunepass.search.latency import LatencyTable, features, fitted, measured_table
from prunepass.search.latency_cache import place_of, read_table, write_table
from prunepass.search.recipe import Recipe, Recipes
from tests.search.small import DENSE_MS, SIZE, TOKENS, ReckonedTimer, Share, small_vit

BRIEF = 0.01
"""Minutes: time for ways to reduce tokens; layers where it takes them."""
LINEAR: Share = lambda macs, reduced, gone: (  # noqa: E731
    0.06 + 0.7 * macs + 0.24 * (1 - gone / (2 * SIZE["depth"])) + 0.002 * reduced
)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    made = small_vit(useless=2)
    return capture(made, (made.images(2),))


@pytest.fixture(scope="module")
def recipes(program: ExportedProgram) -> Recipes:
    return Recipes(program)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return small_vit().images(24)


def test_features_count_what_is_scored_and_what_stays(recipes: Recipes) -> None:
    steps = [
        Step(kind="drop_layers", site="block[2]"),
        Step(kind="drop_layers", site="block[1].mlp"),
        Step(kind="reduce_tokens", site="block[0].attention", rule="key-norm", keep=29),
        Step(kind="reduce_tokens", site="block[1].attention", rule="key-norm", keep=0.5),
    ]
    run, macs, scored, blocks = features(recipes, steps)
    assert run == 1.0
    assert macs == recipes.ratio(steps)
    assert scored == pytest.approx((TOKENS + 29) / TOKENS / SIZE["depth"])
    assert blocks == pytest.approx(1 - 3 / 8)
    assert features(recipes, ()) == (1.0, 1.0, 0.0, 1.0)


def test_a_fit_finds_the_parts_that_times_are_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(7, 4, generator=generator, dtype=torch.float64)
    parts = torch.tensor([0.3, 0.0, 1.2, 0.5], dtype=torch.float64)
    found = fitted(rows.tolist(), (rows @ parts).tolist())
    assert found == pytest.approx(parts.tolist(), abs=1e-4)


def test_no_part_of_a_fit_is_below_zero() -> None:
    """The second part would be -1 by plain least squares."""
    rows = [[1.0, 0.0], [1.0, 0.5], [1.0, 1.0]]
    first, second = fitted(rows, [2.0, 1.5, 1.0])
    assert second == 0.0
    assert first == pytest.approx(1.5, abs=1e-5)


def test_a_table_predicts_the_machine_it_was_measured_on(recipes: Recipes) -> None:
    timer = ReckonedTimer(recipes, LINEAR)
    table = measured_table(recipes, timer, say=lambda text: None)
    assert len(timer.asked) == 3  # 0.35 of the MACs is out of reach for tokens alone
    for recipe, ratio in (
        (Recipe("tome"), 0.6), (Recipe(dropped=("block[1].mlp",)), 1.0),
        (Recipe("weighted-merge", None, ("block[2]",)), 0.45),
    ):  # fmt: skip
        steps = recipes.steps(recipe, ratio)
        assert table.share(recipes, steps) == pytest.approx(timer.of(steps), rel=0.02)
    assert table.share(recipes, ()) == 1.0
    assert table.corrected(1.5).corrected(2.0).share(recipes, steps) == pytest.approx(
        3 * table.share(recipes, steps)
    )


def test_tables_are_kept_under_what_they_were_measured_with(
    recipes: Recipes, tmp_path: Path
) -> None:
    path = place_of(recipes, EagerBackend(), 1, folder=tmp_path / "deep")
    assert path == place_of(recipes, EagerBackend(), 1, folder=tmp_path / "deep")
    assert path != place_of(recipes, EagerBackend(), 8, folder=tmp_path / "deep")
    assert path != place_of(recipes, EagerBackend("other"), 1, folder=tmp_path / "deep")
    assert read_table(path) is None
    write_table(path, LatencyTable((0.1, 0.7, 0.0, 0.2)))
    assert read_table(path) == LatencyTable((0.1, 0.7, 0.0, 0.2))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for damaged in ("{", "[]", json.dumps({"parts": [1.0]}), json.dumps({"parts": [-1, 0, 0, 0]})):
        path.write_text(damaged)
        assert read_table(path) is None
    write_table(Path("/proc/no/such/place.json"), LatencyTable((0.0,) * 4))  # nothing happens


@pytest.mark.parametrize("target", ["latency<=0.8", "latency<=0.5", "latency<=13ms"])
def test_a_target_is_met_on_a_machine_the_table_describes(
    target: str, program: ExportedProgram, recipes: Recipes, images: torch.Tensor
) -> None:
    timer = ReckonedTimer(recipes, LINEAR)
    plan = plan_for(program, images, target=target, timer=timer, minutes=BRIEF)
    wanted = 13.0 / DENSE_MS if target.endswith("ms") else float(target.partition("<=")[2])
    # 37 tokens at two places: costs come in steps of a few percent.
    assert 0.92 * wanted <= timer.of(plan.steps) <= 1.03 * wanted
    assert plan.notes["cost"] == pytest.approx(DENSE_MS * timer.of(plan.steps), abs=1e-3)
    assert plan.notes["dense_cost"] == DENSE_MS


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_machine_that_is_not_as_its_table_says_is_met_all_the_same(
    share: float, program: ExportedProgram, recipes: Recipes, images: torch.Tensor
) -> None:
    """What is timed once the table is done takes half as long again, and bends besides."""

    class Aged(ReckonedTimer):
        def of(self, steps: object) -> float:
            found = super().of(steps)  # type: ignore[arg-type]
            late = len(self.asked) > 4
            return min(1.0, 1.4 * found**1.5) if steps and late else found

    timer = Aged(recipes, LINEAR)
    plan = plan_for(program, images, target=f"latency<={share}", timer=timer, minutes=BRIEF)
    assert 0.92 * share <= timer.of(plan.steps) <= 1.05 * share
    told = [line for line in plan.notes["why"] if line.startswith("timed")]
    assert 2 <= len(told) <= 5
    # What was tried before the correction is told at prices of after it.
    front = {row[4]: row for row in plan.notes["front"]}
    assert all(cost <= 1.5 * DENSE_MS for cost, *_ in front.values())


def test_declined_where_engines_do_not_gain_what_was_predicted(
    program: ExportedProgram, recipes: Recipes, images: torch.Tensor
) -> None:
    """Planted: no plan but those of the table is faster than the dense model."""

    class Slow(ReckonedTimer):
        def of(self, steps: object) -> float:
            late = len(self.asked) > 4
            return 0.99 if steps and late else super().of(steps)  # type: ignore[arg-type]

    with pytest.raises(PlanError, match="declined: nothing gains") as error:
        plan_for(program, images, target="latency<=0.7", timer=Slow(recipes, LINEAR), minutes=BRIEF)
    assert f"the dense model {DENSE_MS:.2f} ms" in str(error.value)


def test_declined_where_a_run_itself_is_what_costs(
    program: ExportedProgram, recipes: Recipes, images: torch.Tensor
) -> None:
    """Planted: a machine on which next to nothing depends on the work."""
    timer = ReckonedTimer(recipes, lambda macs, reduced, gone: 0.97 + 0.02 * macs)
    with pytest.raises(PlanError, match=r"declined: nothing gains 1\.05 times here"):
        plan_for(program, images, target="latency<=0.7", timer=timer, minutes=BRIEF)


def test_declined_where_scoring_costs_more_than_it_saves(
    program: ExportedProgram, recipes: Recipes, images: torch.Tensor
) -> None:
    """Planted: each reduction costs a quarter of the model, and layers cost nothing."""
    timer = ReckonedTimer(recipes, lambda macs, reduced, gone: 1.0 + 0.25 * reduced)
    with pytest.raises(PlanError, match=r"declined: nothing gains 1\.05 times here"):
        plan_for(program, images, target="latency<=0.7", timer=timer, minutes=BRIEF)


def test_a_target_out_of_reach_names_one_that_is_met(
    program: ExportedProgram, recipes: Recipes, images: torch.Tensor
) -> None:
    timer = ReckonedTimer(recipes, lambda macs, reduced, gone: 0.55 + 0.45 * macs)
    with pytest.raises(PlanError, match="cannot be met") as error:
        plan_for(program, images, target="latency<=0.3", timer=timer, minutes=BRIEF)
    told = str(error.value).split("--target '")[1].split("'")[0]
    plan = plan_for(program, images, target=told, timer=timer, minutes=BRIEF)
    assert timer.of(plan.steps) <= 1.05 * float(told.partition("<=")[2])


def test_engines_are_built_and_timed(program: ExportedProgram, recipes: Recipes) -> None:
    steps = recipes.steps(Recipe("tome"), 0.6)
    for batch in (None, 3):
        timer = EngineTimer(program, EagerBackend(), batch=batch, runs=3)
        assert timer(()).ratio == 1.0
        found = timer(steps)
        assert found.milliseconds > 0
        assert found.dense_ms > 0
        assert found.ratio > 0
