"""Labels, sites, prefix tokens and fingerprints of the tiny models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunepass.analyse.sites import label_sites, sites
from prunepass.capturing import capture
from prunepass.graph import meta
from prunepass.graph.text import text
from tests.conftest import Captured, Reduced
from tests.steps import step
from tests.tiny_models import CHANNELS, HEADS, REFUSED, images, tiny

THREE = [f"block[{i}].{kind}" for i in range(3) for kind in ("attention", "mlp", "output")]
PAIRS = [f"block[{i}].{kind}" for i in range(3) for kind in ("attention", "output")]
LATE = [f"block[{i}].{kind}" for i in (3, 4) for kind in ("attention", "output")]
LABELS = {
    **dict.fromkeys(
        ["class", "mean", "distilled", "registers", "rotary", "biased", "unfused", "talking",
         "attention_pool", "post_norm", "sum_of_three", "adversary", "windows", "tokens_out"],
        THREE,
    ),
    "parallel": PAIRS,
    "late_class": [*THREE, *LATE],
    "mixer": [
        f"block[{i}].{kind}" for i in range(3) for kind in ("attention", "mlp", "mlp[1]", "output")
    ],
}  # fmt: skip
EVERY_ROLE = ("attention", "hidden", "key", "query", "size", "value")


@pytest.mark.parametrize("name", list(LABELS))
def test_sites_in_the_order_they_run(captured: Captured, name: str) -> None:
    found = sites(captured(name))
    assert [site.label for site in found] == LABELS[name]
    for site in found:
        block, kind = site.label.split(".")
        assert site.block == int(block[len("block[") : -1])
        assert site.kind == kind.split("[")[0]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("mean", 0), ("class", 1), ("distilled", 2), ("registers", 5), ("rotary", 1),
     ("late_class", 0), ("attention_pool", 0), ("adversary", 1)],
)  # fmt: skip
def test_prefix_tokens(captured: Captured, name: str, prefix: int) -> None:
    found = sites(captured(name))
    assert found.prefix_tokens == prefix
    tokens = 16 if name == "adversary" else 20 + prefix
    assert found["block[0].attention"].tokens == tokens


@pytest.mark.parametrize(
    "name", ["class", "rotary", "biased", "unfused", "talking", "parallel", "post_norm"]
)
def test_sizes_and_roles(captured: Captured, name: str) -> None:
    for site in sites(captured(name)):
        assert (site.tokens, site.channels, site.heads) == (21, CHANNELS, HEADS)
        assert site.roles == EVERY_ROLE
        assert site.refusal is None
        assert site.module.startswith(f"blocks.{site.block}")


def test_window_attention_gives_no_roles(captured: Captured) -> None:
    assert all(site.roles == ("hidden", "size") for site in sites(captured("windows")))


def test_class_attention_is_no_place_to_reduce(captured: Captured) -> None:
    found = sites(captured("late_class"))
    for label in LATE:
        assert found[label].tokens == 1
        assert "too few tokens" in str(found[label].refusal)
    assert len(found.reducible("attention")) == 3


def test_a_pooling_head_is_no_block(captured: Captured) -> None:
    last = sites(captured("attention_pool"))["block[2].output"]
    assert last.tokens == 20
    assert last.refusal is None


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_told_before_planning(captured: Captured, name: str) -> None:
    first = sites(captured(name))["block[0].output"]
    assert first.refusal
    assert ("aten." in first.refusal) != (name == "tokens_out")


def test_refusals_end_where_the_reason_does(captured: Captured) -> None:
    found = sites(captured("mixer"))
    assert found["block[2].mlp"].refusal is not None
    assert found["block[2].mlp[1]"].refusal is None
    assert [s.label for s in found.reducible("output")] == ["block[2].output"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("class", True), ("distilled", True), ("prefix_slice", True), ("mean", False),
     ("registers", False), ("full_slice", False), ("attention_pool", False),
     ("late_class", False), ("tokens_out", False), ("reads_patch", False)],
)  # fmt: skip
def test_reads_prefix_only(captured: Captured, name: str, expected: bool) -> None:
    assert sites(captured(name)).reads_prefix_only is expected


def test_each_label_lies_on_what_it_names(captured: Captured) -> None:
    table = meta.labelled(captured("class").graph)
    for block in range(3):
        site = f"block[{block}].attention"
        heads = (5, HEADS, 21, 14)
        for role in ("query", "key", "value", "core"):
            assert meta.concrete_shape(table[f"{site}:{role}"], 5) == heads
        core = table[f"{site}:core"]
        assert core.args == tuple(table[f"{site}:{r}"] for r in ("query", "key", "value"))
        assert table[f"{site}:input"] in table[f"{site}:output"].args
        assert table[f"block[{block}].mlp:input"] is table[f"{site}:output"]
        assert table[f"block[{block}].output:output"] is table[f"block[{block}].mlp:output"]


def test_written_out_attention_is_labelled_too(captured: Captured) -> None:
    table = meta.labelled(captured("talking").graph)
    for block in range(3):
        site = f"block[{block}].attention"
        assert meta.concrete_shape(table[f"{site}:probabilities"], 5) == (5, HEADS, 21, 21)
        for role in ("query", "key", "value"):
            assert meta.concrete_shape(table[f"{site}:{role}"], 5) == (5, HEADS, 21, 14)


def test_labelling_twice_changes_nothing(captured: Captured) -> None:
    program = captured("class")
    before = text(program)
    assert label_sites(program) is program
    assert text(program) == before


def test_roles_are_found_again_after_re_export(reduced: Reduced) -> None:
    program, _ = reduced("class", [step("block[0].attention", "received-attention", 16)])
    for site in sites(program):
        assert site.heads == HEADS
        expected = ("hidden", "size") if site.label in THREE[1:3] else EVERY_ROLE
        assert site.roles == expected


def test_fingerprint_tells_geometries_apart_and_not_weights(captured: Captured) -> None:
    prints = {
        name: sites(captured(name)).fingerprint
        for name in ("class", "mean", "distilled", "rotary", "biased", "adversary", "late_class")
    }
    assert len(set(prints.values())) == len(prints)
    other = capture(tiny("class", seed=7), (images(2),))
    assert sites(other).fingerprint == prints["class"]
    assert all(len(p) == 16 for p in prints.values())


def test_fingerprint_changes_with_a_reduction(captured: Captured, reduced: Reduced) -> None:
    program, _ = reduced("class", [step("block[0].attention", "received-attention", 16)])
    assert sites(program).fingerprint != sites(captured("class")).fingerprint


def test_a_model_without_attention_has_no_sites() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3))

    found = sites(capture(Convolution().eval(), (torch.zeros(2, 3, 24, 30),)))
    assert len(found) == 0
    assert found.prefix_tokens == 0
    assert not found.reads_prefix_only
