"""Layer dropping, held against eager models without those layers: property B2."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunepass.analyse.blocks import find_blocks
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan, apply_with_records
from prunepass.capturing import capture
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.passes.draft import draft
from prunepass.passes.drop_layers import drop_layers
from prunepass.plans import Plan, Step
from tests.conftest import Captured
from tests.steps import step
from tests.tiny_models import DEPTH, images, tiny

PLAIN = ("class", "mean", "distilled", "registers", "rotary", "biased", "unfused", "talking",
         "parallel", "sum_of_three", "post_norm", "attention_pool", "late_class", "windows",
         "tokens_out")  # fmt: skip


def drops(*labels: str) -> list[Step]:
    return [Step(kind="drop_layers", site=label) for label in labels]


def close(found: Any, told: Tensor) -> None:
    found = found[0] if isinstance(found, (tuple, list)) else found
    torch.testing.assert_close(found, told, rtol=1e-10, atol=1e-10)


class Nothing(nn.Module):
    """Adds nothing to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def without(name: str, *labels: str) -> nn.Module:
    """A tiny model without some layers, taken out by hand."""
    model: Any = copy.deepcopy(tiny(name))
    for label in labels:
        number = int(label[len("block[") : label.index("]")])
        if "." in label:
            part = "attn" if label.endswith("attention") else "mlp"
            setattr(model.blocks[number], part, Nothing())
    whole = {int(x[6:-1]) for x in labels if "." not in x}
    model.blocks = nn.ModuleList(b for i, b in enumerate(model.blocks) if i not in whole)
    return model.eval()


@pytest.mark.parametrize("name", PLAIN)
def test_every_subset_of_blocks_equals_the_eager_model_without_them(
    name: str, captured: Captured
) -> None:
    x = images(3, name=name)
    for count in (1, DEPTH - 1):
        for chosen in itertools.combinations(range(DEPTH), count):
            labels = [f"block[{i}]" for i in chosen]
            close(draft(captured(name), drops(*labels))(x), without(name, *labels)(x))


@pytest.mark.parametrize("name", [n for n in PLAIN if n != "parallel"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_branches_alone(name: str, kind: str, captured: Captured) -> None:
    x = images(3, name=name)
    labels = [f"block[{i}].{kind}" for i in (0, 2)]
    close(draft(captured(name), drops(*labels))(x), without(name, *labels)(x))


def test_sealed_it_is_the_same_and_its_weights_are_gone(captured: Captured) -> None:
    program, x = captured("class"), images(3)
    smaller, record = drop_layers(program, drops("block[1]", "block[2].mlp"))
    close(smaller.module()(x), without("class", "block[1]", "block[2].mlp")(x))
    assert record.applied == ("block[1]", "block[2].mlp")
    assert record.details == {"branches": 3, "blocks": 1}
    names = set(smaller.state_dict)
    assert not [n for n in names if n.startswith("blocks.1.") or ".2.mlp" in n or "2.norm2" in n]
    assert {n for n in program.state_dict if n.startswith("blocks.0.")} <= names
    close(smaller.module()(images(1)), without("class", "block[1]", "block[2].mlp")(images(1)))


def test_b2_dropping_an_identity_layer_changes_nothing() -> None:
    model: Any = tiny("class")
    for part in (model.blocks[1].attn.proj, model.blocks[1].mlp.fc2):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    program, x = capture(model, (images(2),)), images(4)
    assert torch.equal(draft(program, drops("block[1]"))(x), model(x))


def test_labels_of_what_stays_are_as_they_were(captured: Captured) -> None:
    smaller, _ = drop_layers(captured("class"), drops("block[1]", "block[2].attention"))
    table = meta.labelled(smaller.graph)
    outputs = {label for label in table if label.endswith(":output")}
    assert outputs == {
        "block[0].attention:output", "block[0].mlp:output", "block[0].output:output",
        "block[2].mlp:output", "block[2].output:output",
    }  # fmt: skip
    assert table["block[2].mlp:input"] is table["block[0].output:output"]
    found = sites(smaller)
    assert [s.label for s in found if s.kind == "mlp"] == ["block[0].mlp", "block[2].mlp"]
    assert found.prefix_tokens == 1


def test_twice_is_both_at_once(captured: Captured) -> None:
    x = images(3)
    once, _ = drop_layers(captured("class"), drops("block[0]"))
    twice, _ = drop_layers(once, drops("block[2].mlp"))
    close(twice.module()(x), without("class", "block[0]", "block[2].mlp")(x))


@pytest.mark.parametrize("name", ["class", "rotary"])
def test_in_one_plan_with_token_reduction(name: str, captured: Captured) -> None:
    program, x = captured(name), images(3)
    some = [step("block[0].attention", "tome", 12, "merge"), step("block[2].output", "key-norm", 7)]
    plan = Plan(
        method="test", steps=(*drops("block[1]"), *some),
        fingerprint=sites(program).fingerprint,
    )  # fmt: skip
    smaller, records = apply_with_records(program, plan)
    assert [record.kind for record in records] == ["drop_layers", "reduce_tokens"]
    eager = capture(without(name, "block[1]"), (images(2),))
    # Block 2 of the whole model is block 1 of the one without block 1.
    alike = [some[0], step("block[1].output", "key-norm", 7)]
    close(smaller.module()(x), draft(eager, alike)(x))


def test_a_site_of_a_dropped_layer_is_refused(captured: Captured) -> None:
    program = captured("class")
    for gone, at in (("block[1]", "block[1].output"), ("block[1].mlp", "block[1].mlp")):
        plan = Plan(
            method="test", steps=(*drops(gone), step(at, "random", 9)),
            fingerprint=sites(program).fingerprint,
        )  # fmt: skip
        with pytest.raises(PlanError, match="drops"):
            apply_plan(program, plan)


@pytest.mark.parametrize("labels", [("block[7]",), ("block[1].atention",), ("block[1].output",)])
def test_unknown_layers_are_refused(labels: tuple[str, ...], captured: Captured) -> None:
    with pytest.raises(PlanError, match="no layer"):
        draft(captured("class"), drops(*labels))


@pytest.mark.parametrize(
    "labels", [("block[1]", "block[1].mlp"), ("block[1].mlp", "block[1]"), ("block[0]", "block[0]")]
)
def test_a_layer_cannot_go_twice(labels: tuple[str, ...], captured: Captured) -> None:
    with pytest.raises(PlanError, match="twice"):
        draft(captured("class"), drops(*labels))


def test_something_must_be_left(captured: Captured) -> None:
    with pytest.raises(PlanError, match="left"):
        draft(captured("class"), drops(*(f"block[{i}]" for i in range(DEPTH))))


def test_a_rule_or_option_on_such_a_step_is_refused(captured: Captured) -> None:
    wrong = Step(kind="drop_layers", site="block[1]", rule="tome")
    with pytest.raises(PlanError, match="more than dropping"):
        draft(captured("class"), [wrong])


def test_what_lies_between_blocks_besides_norms_is_not_dropped(captured: Captured) -> None:
    """A position convolution behind the MLP belongs to the block, but to none of its branches."""
    with pytest.raises(UnsupportedGraph, match="between this block and the next"):
        draft(captured("convolved"), drops("block[1]"))
    x = images(3)
    close(
        draft(captured("convolved"), drops("block[1].mlp"))(x),
        without("convolved", "block[1].mlp")(x),
    )


def test_the_blocks_of_a_program(captured: Captured) -> None:
    blocks = find_blocks(open_module(captured("class")).graph)
    assert [b.site for b in blocks] == [f"block[{i}]" for i in range(DEPTH)]
    assert [[b.site for b in block.branches] for block in blocks][1] == [
        "block[1].attention", "block[1].mlp",
    ]  # fmt: skip
    assert blocks[1].weights == (
        "blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight",
        "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight",
    )  # fmt: skip
    assert all(block.obstacle is None for block in blocks)
    (parallel, *_) = find_blocks(open_module(captured("parallel")).graph)
    assert len(parallel.branches) == 1
    assert len(parallel.weights) == 4
