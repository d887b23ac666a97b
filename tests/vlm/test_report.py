"""What a compiled vision-language model gained: counted from its programs, part by part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from prunepass.analyse.flops import macs
from prunepass.plans import Plan
from prunepass.vlm.cost import prompt_macs
from prunepass.vlm.report import IN_FRONT, told_of
from prunepass.vlm.rewrite import Rewritten, rewrite
from tests.tiny_language import IMAGE_TOKENS, LAYERS, small_llava
from tests.vlm.conftest import AFTER, KEEP


@pytest.fixture(scope="module")
def made() -> Rewritten:
    return rewrite(small_llava(), method="transprune", keep=KEEP, after=AFTER)


def report_of(made: Rewritten) -> Any:
    report = told_of(made, parameters=1, difference=0.0, seconds={}, weights="random")
    return json.loads(report.to_json())


def test_parts_add_up_to_what_the_programs_cost(made: Rewritten) -> None:
    told = report_of(made)
    encoder = macs(made.programs["vision"])
    assert told["parts"]["compressed"]["encoder"] == encoder
    assert told["macs"] == encoder + prompt_macs(
        made.programs["prefill"], image_tokens=IMAGE_TOKENS
    )
    assert told["macs"] == sum(told["parts"]["compressed"].values())
    assert told["macs_dense"] == sum(told["parts"]["dense"].values())
    dense, now = (
        [told["parts"][key][f"block[{i}]"] for i in range(LAYERS)]
        for key in ("dense", "compressed")
    )
    # In front of the first pruning there is scoring, and nothing is saved; behind it, ever more.
    assert dense[0] < now[0]
    assert now[-1] < now[2] < dense[2]
    assert list(told["parts"]["compressed"]) == [
        "encoder", *(f"block[{i}]" for i in range(LAYERS)), "behind",
    ]  # fmt: skip
    assert told["tokens"] == {
        "behind layer 1": [16, 12], "behind layer 2": [12, 8], "behind layer 3": [8, 4],
    }  # fmt: skip


def test_the_plan_can_be_read_again(made: Rewritten) -> None:
    plan = Plan.from_json(made.plan.to_json())
    assert [step.kind for step in plan.steps] == ["prune_image_tokens"] * 3
    assert [step.keep for step in plan.steps] == list(KEEP)
    assert plan.notes["cache"] == pytest.approx((1.0 + 0.75 + 0.5 + 0.25 + 0.25) / LAYERS)


@pytest.mark.parametrize(
    ("without", "left"),
    [
        (("block[1]", "block[3]"), (0, 2, 4)),
        pytest.param(("block[2].mlp",), range(5), marks=pytest.mark.slow),
    ],
)
def test_layers_that_were_dropped_have_their_number(
    without: tuple[str, ...], left: Sequence[int]
) -> None:
    made = rewrite(small_llava(), method="none", without=without)
    told = report_of(made)
    blocks = [name for name in told["parts"]["compressed"] if name.startswith("block")]
    assert blocks == [f"block[{i}]" for i in left]
    for name in blocks:
        dense, now = (told["parts"][key][name] for key in ("dense", "compressed"))
        assert (now < dense) == any(site.startswith(name) for site in without)
    assert told["tokens"] == {}
    assert made.plan.notes["dropped"] == list(without)


@pytest.mark.slow
def test_without_one_attention_its_mlp_still_counts() -> None:
    made = rewrite(small_llava(), method="none", without=("block[2].attention",))
    told = report_of(made)
    assert told["macs"] < told["macs_dense"]
    assert told["macs"] == macs(made.programs["vision"]) + prompt_macs(
        made.programs["prefill"], image_tokens=IMAGE_TOKENS
    )


@pytest.mark.slow
def test_tokens_that_go_in_front_of_the_language_model() -> None:
    made = rewrite(small_llava(), method="visionzip", keep=(0.5,))
    told = report_of(made)
    assert list(told["tokens"]) == [IN_FRONT]
    assert told["tokens"][IN_FRONT][0] == IMAGE_TOKENS
    assert told["macs"] < told["macs_dense"]
