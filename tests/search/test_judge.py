"""Verdicts on drafts, and calibration data of the wrong kind."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.capturing import capture
from prunepass.errors import ModelError, PlanError, UsageError
from prunepass.plans import Step
from prunepass.search.dense_floor import check_floor
from prunepass.search.judge import Judge, Verdict
from prunepass.search.target import floor
from tests.conftest import Captured
from tests.search.small import small_vit
from tests.tiny_models import images as pictures

MERGE = Step(
    kind="reduce_tokens", site="block[1].attention", rule="key-norm", keep=20, action="merge"
)


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    made = small_vit()
    return capture(made, (made.images(2),))


def test_a_verdict_on_the_first_pictures_is_the_start_of_one_on_all(
    program: ExportedProgram,
) -> None:
    first = Judge(program, small_vit().images(24), None).verdict([MERGE], count=5)
    judge = Judge(program, small_vit().images(24), None)
    whole = judge.verdict([MERGE])
    assert len(whole.kl) == 12
    assert judge.verdict([MERGE], count=5) == whole.first(5)
    assert first.kl == pytest.approx(whole.kl[:5], rel=1e-4, abs=1e-8)
    assert judge.fresh == 1


def test_a_gain_comes_with_its_standard_error() -> None:
    """By hand: gaps of 1, 2 and 6, mean 3, variance 7."""
    better = Verdict((1.0, 1.0, 1.0), (True,) * 3)
    worse = Verdict((2.0, 3.0, 7.0), (True,) * 3)
    gain, error = better.gain_over(worse)
    assert gain == 3.0
    assert error == pytest.approx(math.sqrt(7 / 3))
    assert worse.gain_over(better)[0] == -3.0


def test_pictures_of_the_wrong_kind(program: ExportedProgram) -> None:
    right = small_vit().images(12)
    with pytest.raises(ModelError, match="does not run on the calibration data"):
        Judge(program, right[:, :1], None)
    with pytest.raises(ModelError, match="does not run on the calibration data"):
        Judge(program, torch.zeros(12, 3, 8, 8), None)
    with pytest.raises(ModelError, match="does not run on the calibration data"):
        Judge(program, torch.zeros(12, 5, dtype=torch.int64), None)
    with pytest.raises(ModelError, match="no finite numbers"):
        Judge(program, right.index_fill(0, torch.tensor([3]), float("nan")), None)
    with pytest.raises(ModelError, match="a label each"):
        Judge(program, right, torch.zeros(11, dtype=torch.int64))
    with pytest.raises(ModelError, match="at least 8"):
        Judge(program, right[:7], None)


def test_a_model_without_class_scores_cannot_be_judged(captured: Captured) -> None:
    with pytest.raises(ModelError, match="class scores"):
        Judge(captured("tokens_out"), pictures(12), None)


@pytest.mark.parametrize("kind", ["kl<=1e-30", "kl<=1e-15"])
def test_a_floor_below_the_models_own_rounding_says_what_that_is(
    kind: str, program: ExportedProgram
) -> None:
    judge = Judge(program, small_vit().images(24), None)
    with pytest.raises(PlanError, match="rounding of the dense model alone") as error:
        check_floor(judge, floor(kind))
    assert len(str(error.value).splitlines()) == 3
    noise = float(str(error.value).split("found: kl ")[1].split()[0])
    assert 1e-15 < noise < 1e-6
    check_floor(judge, floor(f"kl<={2 * noise:g}"))


def test_a_near_tie_of_two_classes_breaks_a_floor_of_full_agreement() -> None:
    """Two classes whose scores are alike but for rounding: single and double precision differ."""
    made = small_vit()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # The same numbers in another order: sums that are equal, but not in floating point.
        made.head.weight.zero_()
        made.head.bias.zero_()
        row = 1e4 * torch.rand(24, generator=generator) + 1.0
        made.head.weight[0], made.head.weight[1] = row, row
        made.head.weight[1, ::2] *= 1 + 1e-7
        made.head.weight[1, 1::2] *= 1 - 1e-7
    judge = Judge(capture(made, (made.images(2),)), made.images(128), None)
    assert judge.noise().quality("agreement") < 1.0
    with pytest.raises(PlanError, match="rounding of the dense model alone breaks agreement>=1"):
        check_floor(judge, floor("agreement>=1"))


def test_a_floor_of_top1_needs_labels_and_a_model_that_holds_it(program: ExportedProgram) -> None:
    images = small_vit().images(24)
    with pytest.raises(UsageError, match="needs labels"):
        check_floor(Judge(program, images, None), floor("top1>=0.5"))
    with pytest.raises(UsageError, match="needs labels"):
        check_floor(Judge(program, images, torch.full((24,), -1)), floor("top1>=0.5"))
    said = program.module(check_guards=False)(images).argmax(1)
    with pytest.raises(PlanError, match="dense model itself"):
        check_floor(Judge(program, images, (said + 1) % 7), floor("top1>=0.5"))
    check_floor(Judge(program, images, said), floor("top1>=1"))


def test_memory_of_another_search_or_none(program: ExportedProgram, tmp_path: Path) -> None:
    images = small_vit().images(24)
    path = tmp_path / "memory.jsonl"
    told = Judge(program, images, None, memory=path).verdict([MERGE])
    again = Judge(program, images, None, memory=path)
    assert again.verdict([MERGE]) == told
    assert again.fresh == 0
    with pytest.raises(UsageError, match="another model or other pictures"):
        Judge(program, images, None, seed=1, memory=path)
    path.write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(UsageError, match="cannot read"):
        Judge(program, images, None, memory=path)
    with pytest.raises(UsageError, match="cannot write"):
        Judge(program, images, None, memory=tmp_path / "no" / "x").verdict([MERGE])
