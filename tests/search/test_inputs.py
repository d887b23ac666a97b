"""The share of inputs of a decoder, from a target and a floor."""

from __future__ import annotations

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.analyse.flops import macs
from prunepass.apply import apply_plan
from prunepass.errors import ModelError, PlanError, UsageError
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Plan
from prunepass.search.inputs import keep_for
from prunepass.search.text_judge import TextJudge
from tests.tiny_decoders import captured, outputs, texts

TEXTS = texts(10)


@pytest.fixture(scope="module")
def programs() -> tuple[ExportedProgram, ExportedProgram]:
    return captured("llama"), captured("llama", every=True)


@pytest.fixture(scope="module")
def planned(programs: tuple[ExportedProgram, ExportedProgram]) -> Plan:
    return keep_for(*programs, TEXTS, target="flops<=0.7", smallest=0)


def test_everything_kept_changes_nothing_and_less_changes_more(
    programs: tuple[ExportedProgram, ExportedProgram],
) -> None:
    judge = TextJudge(programs[1], TEXTS)
    verdicts = [
        judge.verdict(plan_inputs(programs[0], keep=keep, smallest=0).steps)
        for keep in (1.0, 0.8, 0.3)
    ]
    assert verdicts[0].mean == pytest.approx(0.0, abs=1e-9)
    assert verdicts[0].quality("agreement") == 1.0
    assert 0 < verdicts[1].mean < verdicts[2].mean
    assert len(verdicts[1].kl) == 5
    assert len(verdicts[1].agrees) == 5 * 12


def test_a_verdict_is_what_the_rewritten_program_says(
    programs: tuple[ExportedProgram, ExportedProgram],
) -> None:
    """One token at a time is what layers read fewer inputs for."""
    program, speaking = programs
    plan = plan_inputs(program, keep=0.5, smallest=0)
    single = [[n] for n in range(4, 14)]
    judge = TextJudge(speaking, single)
    unseen = judge.texts["unseen"]
    dense, sparse = (
        torch.cat([outputs(p, [text])[0] for text in unseen])[:, -1].double().log_softmax(-1)
        for p in (program, apply_plan(program, plan))
    )
    told = (dense.exp() * (dense - sparse)).sum(-1)
    assert judge.verdict(plan.steps, part="unseen").kl == pytest.approx(
        told.tolist(), rel=1e-2, abs=1e-6
    )


def test_a_target_is_met_as_counted_on_the_rewritten_program(
    programs: tuple[ExportedProgram, ExportedProgram], planned: Plan
) -> None:
    ratio = macs(apply_plan(programs[0], planned)) / macs(programs[0])
    assert ratio == pytest.approx(planned.notes["macs_ratio"], abs=1e-3)
    assert 0.66 <= ratio <= 0.705
    assert planned.method in ("wina", "teal")
    assert Plan.from_json(planned.to_json()) == planned
    assert planned.notes["why"][-1] == "stopped: nothing left to try"


def test_the_better_of_two_methods_is_taken(
    programs: tuple[ExportedProgram, ExportedProgram], planned: Plan
) -> None:
    judge = TextJudge(programs[1], TEXTS)
    for method in ("wina", "teal"):
        other = plan_inputs(
            programs[0], method=method, keep=planned.notes["keep"], smallest=0
        )  # fmt: skip
        assert planned.notes["kl"] <= judge.verdict(other.steps).mean + 1e-6


def test_a_floor_alone_gives_the_fewest_inputs_that_keep_it(
    programs: tuple[ExportedProgram, ExportedProgram],
) -> None:
    plan = keep_for(*programs, TEXTS, floor="agreement>=0.5", smallest=0)
    judge = TextJudge(programs[1], TEXTS)
    for part in ("chosen", "unseen"):
        assert judge.verdict(plan.steps, part=part).quality("agreement") >= 0.5
    assert plan.notes["macs_ratio"] < 0.95


def test_what_cannot_be_had_is_told(programs: tuple[ExportedProgram, ExportedProgram]) -> None:
    with pytest.raises(PlanError, match="cannot both be met"):
        keep_for(*programs, TEXTS, target="flops<=0.4", floor="kl<=1e-4", smallest=0, minutes=1e-6)
    with pytest.raises(PlanError, match="cannot be met") as error:
        keep_for(*programs, TEXTS, target="flops<=0.01", smallest=0)
    told = str(error.value).split("--target '")[1].split("'")[0]
    assert keep_for(*programs, TEXTS, target=told, smallest=0, minutes=1e-6).steps
    with pytest.raises(PlanError, match="declined"):
        keep_for(*programs, TEXTS, target="flops<=0.99", smallest=0)
    with pytest.raises(PlanError, match="declined"):
        keep_for(*programs, TEXTS, floor="kl<=1e-12", smallest=0)


def test_wrong_requests(programs: tuple[ExportedProgram, ExportedProgram]) -> None:
    for wrong in (
        {},
        {"target": "latency<=5ms"},
        {"target": "tokens<=0.5"},
        {"floor": "top1>=0.5"},
    ):
        with pytest.raises(UsageError):
            keep_for(*programs, TEXTS, smallest=0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="at least 4 texts"):
        keep_for(*programs, TEXTS[:3], target="flops<=0.7", smallest=0)
    with pytest.raises(PlanError, match="token 99"):
        keep_for(*programs, [*TEXTS, [3, 99]], target="flops<=0.7", smallest=0)
