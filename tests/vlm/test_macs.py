"""MACs of prefill: the published figures, and the honest ones."""

from __future__ import annotations

from typing import Any

import pytest

import prunepass
from prunepass.errors import PlanError
from prunepass.vlm.macs import image_token_macs, kept_counts, prefill_macs

LLAVA_7B: dict[str, Any] = {"hidden": 4096, "intermediate": 11008, "layers": 32}
HIGH: dict[str, Any] = {"prune_after": (7, 9, 12), "keep": (0.875, 0.625, 0.125)}
LOW: dict[str, Any] = {"prune_after": (7, 9, 12), "keep": (0.625, 0.1875, 0.0625)}


@pytest.mark.parametrize(
    ("tokens", "stages", "printed"),
    [
        (576, {}, 3.817),
        (576, HIGH, 1.557),
        (576, LOW, 1.19),
        (2880, {}, 20.825),
        (2880, HIGH, 8.330),
        (2880, LOW, 6.41),
        (576, {**HIGH, "prune_after": (5, 7, 10)}, 1.348),
        (576, {**HIGH, "prune_after": (9, 11, 14)}, 1.767),
        (576, {"prune_after": (2,), "keep": (0.5,)}, 2.007),
        (576, {"prune_after": (2,), "keep": (0.25,)}, 1.118),
        (576, {"prune_after": (8, 16, 24), "keep": (0.5, 0.25, 0.125)}, 1.777),
    ],
)
def test_published_figures(tokens: int, stages: dict[str, Any], printed: float) -> None:
    found = prunepass.vlm.image_token_macs(**LLAVA_7B, image_tokens=tokens, **stages) / 1e12
    digits = len(str(printed).partition(".")[2])
    assert found == pytest.approx(printed, abs=0.51 * 10**-digits)


def test_published_counts() -> None:
    assert kept_counts(576, HIGH["keep"]) == (504, 360, 72)
    assert kept_counts(100, (0.29,)) == (29,)
    assert kept_counts(3, (0.1,)) == (1,)


def test_the_honest_count_by_hand() -> None:
    # 1 layer, then 1 layer: d = 4, keys 2 wide, m = 6, 10 image and 5 text tokens, 3 of them ask.
    def layer(n: int) -> int:
        return 2 * n * 16 + 2 * n * 8 + 2 * n * n * 4 + 3 * n * 24

    scoring = 3 * 16 + 5 * 8 + 3 * 15 * 4  # queries, keys of the five that go, products
    found = prefill_macs(
        hidden=4, kv_hidden=2, intermediate=6, layers=2, image_tokens=10, text_tokens=5, rows=3,
        vocabulary=7, prune_after=(1,), keep=(0.5,),
    )  # fmt: skip
    assert found == layer(15) + scoring + layer(10) + 4 * 7


def test_without_text_and_scoring_both_counts_agree() -> None:
    papers = image_token_macs(**LLAVA_7B, image_tokens=576, **HIGH)
    ours = prefill_macs(**LLAVA_7B, image_tokens=576, text_tokens=0, rows=0, **HIGH)
    assert papers == ours


def test_scoring_is_a_small_part() -> None:
    """What the published code spends on it is 4.7 % of the budget."""
    given = {**LLAVA_7B, "image_tokens": 576, "text_tokens": 64, **HIGH}
    with_rows, without = (prefill_macs(**given, rows=rows) for rows in (40, 0))
    assert 0 < with_rows - without < 0.03 * without


@pytest.mark.parametrize(
    ("stages", "what"),
    [
        ({"prune_after": (7, 9), "keep": (0.5,)}, "needs a share"),
        ({"prune_after": (9, 7), "keep": (0.5, 0.4)}, "must ascend"),
        ({"prune_after": (32,), "keep": (0.5,)}, "inside the model"),
        ({"prune_after": (0,), "keep": (0.5,)}, "inside the model"),
        ({"prune_after": (7,), "keep": (0.0,)}, "share of the original"),
        ({"prune_after": (7, 9), "keep": (0.5, 0.6)}, "no more than the one before"),
    ],
)
def test_stages_that_do_not_fit(stages: dict[str, Any], what: str) -> None:
    with pytest.raises(PlanError, match=what):
        image_token_macs(**LLAVA_7B, image_tokens=576, **stages)
