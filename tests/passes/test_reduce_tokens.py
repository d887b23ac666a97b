"""Token reduction inside programs, against eager twins that do the same by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.analyse.sites import sites
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.text import text
from prunepass.passes.reduce_tokens import draft, reduce_tokens
from prunepass.plans import Step
from prunepass.rules.key_norm import key_norm
from prunepass.rules.received_attention import received_attention
from prunepass.rules.table import RULES, UNREAD
from tests.conftest import Captured, Reduced
from tests.kept_indices import with_kept
from tests.reference.eager_vit import Twin, masked_logits
from tests.steps import by_site, step
from tests.tiny_models import REFUSED, images, tiny

SCORING = [name for name, row in RULES.items() if name != UNREAD and "scan_output" not in row.needs]
PREFIX = {"class": 1, "mean": 0, "distilled": 2, "registers": 5}
TWINS = [*PREFIX, "rotary", "biased", "unfused", "talking", "attention_pool", "late_class",
         "post_norm", "sum_of_three"]  # fmt: skip
SEALED = [("rotary", "drop"), ("late_class", "merge")]
SOME = [step("block[0].attention", "key-norm", 0.75), step("block[1].output", "tome", 0.7, "merge")]


def run(program: ExportedProgram, x: Tensor) -> Tensor:
    logits: Tensor = program.module(check_guards=False)(x)
    return logits


def close(result: Tensor, expected: Tensor) -> None:
    assert expected.isfinite().all()
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def mixture(action: str) -> list[Step]:
    """Four rules at three blocks, attention and output sites, two of them in one block."""
    other = "merge" if action == "drop" else "drop"
    return [
        step("block[0].attention", "page-rank", 0.9, action, iterations=3),
        step("block[0].output", "tome", 0.8, action),
        step("block[1].attention", "attention-weighted", 0.9, other),
        step("block[1].output", "random", 0.75, action, seed=4),
        step("block[2].attention", "received-attention", 10, action),
    ]


@pytest.mark.parametrize("action", ["drop", "merge"])
@pytest.mark.parametrize("rule", SCORING)
def test_every_rule_equals_its_twin(captured: Captured, rule: str, action: str) -> None:
    steps = [
        step("block[0].attention", rule, 0.75, action),
        step("block[1].output", rule, 0.7, action),
    ]
    x = images(3, seed=4)
    close(draft(captured("class"), steps)[0](x), Twin(tiny("class"), by_site(steps)).run(x))


@pytest.mark.parametrize("half", [0, 1])
def test_every_rule_equals_its_twin_when_sealed(reduced: Reduced, half: int) -> None:
    """Two plans that have every rule between them, with both actions."""
    places = ["block[0].attention", "block[0].output", "block[1].attention", "block[2].attention"]
    places.append("block[2].output")
    rules = [
        ["page-rank", "tome", "attention-weighted", "cls-attention"],
        ["received-attention", "key-norm", "zero-tprune", "random", "similar-hidden"],
    ]
    assert sorted(rules[0] + rules[1]) == sorted(SCORING)
    chosen, left = rules[half], (21, 18, 15, 12, 9, 6)
    places = places[: len(chosen)]
    steps = [
        step(place, rule, keep, "merge" if (keep + half) % 2 else "drop")
        for place, rule, keep in zip(places, chosen, left[1:], strict=False)
    ]
    program, record = reduced("class", steps)
    assert record.applied == tuple(places)
    assert list(record.tokens.values()) == list(pairwise(left[: len(chosen) + 1]))
    x = images(3, seed=5)
    close(run(program, x), Twin(tiny("class"), by_site(steps)).run(x))


@pytest.mark.parametrize(
    ("name", "action"),
    [*((name, "merge") for name in TWINS), ("mean", "drop"), ("biased", "drop")],
)
def test_a_mixture_of_rules_equals_its_twin(captured: Captured, name: str, action: str) -> None:
    steps = mixture(action)
    module, record = draft(captured(name), steps)
    x = images(3, seed=6)
    close(module(x), Twin(tiny(name), by_site(steps)).run(x))
    assert len(record.applied) == 5


@pytest.mark.parametrize(("name", "action"), SEALED)
def test_sealed_mixtures_equal_their_twins(reduced: Reduced, name: str, action: str) -> None:
    program, _ = reduced(name, mixture(action)[1:4])
    x = images(3, seed=6)
    close(run(program, x), Twin(tiny(name), by_site(mixture(action)[1:4])).run(x))


@pytest.mark.parametrize("action", ["drop", "merge"])
def test_parallel_blocks_equal_their_twin(captured: Captured, action: str) -> None:
    steps = [
        step("block[0].attention", "tome", 0.8, action),
        step("block[2].output", "page-rank", 0.5, action),
    ]
    module, _ = draft(captured("parallel"), steps)
    x = images(3, seed=6)
    twin = {"block[0].attention": steps[0], "block[2].attention": steps[1]}
    close(module(x), Twin(tiny("parallel"), twin).run(x))


@pytest.mark.parametrize("name", ["rotary", "biased", "unfused"])
def test_live_ins_are_gathered_at_the_kept_tokens(captured: Captured, name: str) -> None:
    steps = [
        step("block[0].attention", "key-norm", 15, "drop"),
        step("block[1].attention", "cls-attention", 9, "drop"),
    ]
    module, record = draft(captured(name), steps)
    assert record.details["live_ins"] == {"rotary": 8, "biased": 2, "unfused": 2}[name]
    x = images(3, seed=7)
    close(module(x), Twin(tiny(name), by_site(steps)).run(x))


def test_sizes_that_are_equal_by_accident(captured: Captured, reduced: Reduced) -> None:
    """16 tokens, 16 channels, 16 classes: one random step, done by hand here."""
    steps = [step("block[1].output", "random", 11)]
    program, record = reduced("adversary", steps)
    assert record.details["frozen_sizes"] == 2
    assert record.details["live_ins"] == 1
    model, x = tiny("adversary"), images(3, seed=8, name="adversary")
    kept = with_kept(captured("adversary"), steps)(x)[1]
    h = model.patch(x).flatten(2).transpose(1, 2)
    h = torch.cat([model.special.expand(3, -1, -1), h], dim=1) + model.position
    bias = model.bias.expand(3, -1, -1, -1)
    for index in range(3):
        q, k, v = model.qkv[index](h).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / 2 + bias).softmax(dim=-1)
        h = h + model.proj[index]((weights @ v).transpose(1, 2).flatten(2))
        h = h + model.fc[index](h).tanh()
        if index == 1:
            h = torch.stack([rows[chosen] for rows, chosen in zip(h, kept, strict=True)])
            bias = torch.stack([b[:, i][:, :, i] for b, i in zip(bias, kept, strict=True)])
    close(run(program, x), model.head(h[:, 0]))


@pytest.mark.parametrize("name", ["full_slice", "prefix_slice"])
def test_slices_that_keep_every_token_apart(captured: Captured, name: str) -> None:
    steps = [step("block[2].output", "random", 12)]
    model, x = tiny(name), images(3, seed=9)
    logits, kept = with_kept(captured(name), steps)(x)
    h = model.embed(x)
    for block in model.blocks:
        h = block(h)
    assert kept.shape == (3, 12)
    h = torch.stack([rows[chosen] for rows, chosen in zip(h, kept, strict=True)])
    h = model.norm(h)
    close(logits, h[:, 1:].mean(1) if name == "full_slice" else h[:, :2].flatten(1))


@pytest.mark.parametrize("name", ["class", "distilled", "rotary", "unfused"])
def test_unread_changes_nothing(captured: Captured, name: str) -> None:
    prefix = sites(captured(name)).prefix_tokens
    module, record = draft(captured(name), [step("block[2].attention", UNREAD, prefix)])
    x = images(3, seed=10)
    close(module(x), tiny(name)(x))
    assert record.tokens["block[2].attention"][1] == prefix


@pytest.mark.parametrize("action", ["drop", "merge"])
def test_unread_behind_other_steps_changes_nothing(captured: Captured, action: str) -> None:
    steps = [step("block[0].attention", "tome", 15, action)]
    x = images(3, seed=11)
    more = [*steps, step("block[2].attention", UNREAD, 1)]
    close(draft(captured("class"), more)[0](x), draft(captured("class"), steps)[0](x))


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("class", "block[1].attention"),
        ("mean", "block[2].output"),
        ("registers", "block[2].output"),
    ],
)
def test_unread_refuses_where_other_tokens_are_read(
    captured: Captured, name: str, site: str
) -> None:
    with pytest.raises(PlanError):
        draft(captured(name), [step(site, UNREAD, max(PREFIX[name], 1))])


@pytest.mark.parametrize(("name", "keep"), [("class", 1.0), ("mean", "all")])
def test_g1_keeping_everything_is_bit_identical(
    captured: Captured, name: str, keep: float | str
) -> None:
    program = captured(name)
    count = sites(program).items[0].tokens if keep == "all" else keep
    steps = [
        step("block[0].attention", "zero-tprune", count, "drop"),
        step("block[1].output", "tome", count, "merge"),
    ]
    whole, record = reduce_tokens(program, steps)
    x = images(3, seed=12)
    assert torch.equal(run(whole, x), run(program, x))
    assert text(whole).count("\n") <= text(program).count("\n")
    assert all(before == after for before, after in record.tokens.values())


@pytest.mark.parametrize(
    ("name", "rule"),
    [*(("registers", rule) for rule in SCORING), *((name, "zero-tprune") for name in PREFIX)],
)
def test_g2_g3_g6_kept_indices(captured: Captured, name: str, rule: str) -> None:
    prefix = PREFIX[name]
    steps = [
        step("block[0].attention", rule, 0.8),
        step("block[2].attention", rule, 0.6),
    ]
    _, first, second = with_kept(captured(name), steps)(images(3, seed=13))
    tokens = 20 + prefix
    for kept, before, after in ((first, tokens, prefix + 16), (second, prefix + 16, prefix + 10)):
        assert kept.shape == (3, after)
        assert (kept[:, :prefix] == torch.arange(prefix)).all()
        assert (kept.diff(dim=1) > 0).all()
        assert int(kept.min()) >= 0
        assert int(kept.max()) < before


@pytest.mark.parametrize(("name", "action"), SEALED)
def test_g5_a_batch_equals_its_single_images(reduced: Reduced, name: str, action: str) -> None:
    program, _ = reduced(name, mixture(action)[1:4])
    x = images(3, seed=14)
    close(run(program, x), torch.cat([run(program, image[None]) for image in x]))


@pytest.mark.parametrize("name", list(PREFIX))
@pytest.mark.parametrize("rule", ["key-norm", "tome"])
def test_g7_masking_equals_gathering(captured: Captured, name: str, rule: str) -> None:
    steps = [
        step("block[0].attention", rule, 0.8),
        step("block[1].output", rule, 0.7),
    ]
    x = images(3, seed=15)
    logits, *kept = with_kept(captured(name), steps)(x)
    masked = masked_logits(
        tiny(name), x, dict(zip([item.site for item in steps], kept, strict=True))
    )
    close(logits, masked)


@pytest.mark.parametrize(("name", "action"), SEALED)
def test_g9_only_the_batch_is_dynamic(reduced: Reduced, name: str, action: str) -> None:
    program, _ = reduced(name, mixture(action)[1:4])
    symbols, numbers = set(), 0
    for node in program.graph.nodes:
        shape = meta.shape(node)
        for size in shape or ():
            if isinstance(size, int):
                numbers += 1
            else:
                symbols |= size.node.expr.free_symbols
    assert len(symbols) == 1
    assert numbers > 300
    for batch in (1, 3, 5):
        assert run(program, images(batch)).shape[0] == batch


@pytest.mark.parametrize("rule", ["key-norm", "received-attention"])
def test_g11_half_precision_keeps_the_same_tokens(captured: Captured, rule: str) -> None:
    """Sets may differ only where scores are closer than float16 resolves after one block."""
    site, keep = "block[0].attention", 12
    steps = [step(site, rule, keep)]
    x = images(5, seed=16, dtype=torch.float16)
    half = tiny("class").to(torch.float16)
    low = with_kept(captured("class", torch.float16), steps)(x)[1]
    twin = Twin(half.to(torch.float32), by_site(steps))
    logits = twin.run(x.to(torch.float32))
    assert logits.isfinite().all()
    roles = twin.roles[site]
    score = key_norm(roles["key"]) if rule == "key-norm" else received_attention(roles["attention"])
    scale = float(score[:, 1:].std())
    for image in range(5):
        one, other = set(low[image].tolist()), set(twin.kept[site][image].tolist())
        for gone, come in zip(sorted(other - one), sorted(one - other), strict=True):
            assert abs(float(score[image, gone] - score[image, come])) < 0.02 * scale


def test_labels_survive_sealing_export_and_saving(
    reduced: Reduced, captured: Captured, tmp_path: Path
) -> None:
    program, _ = reduced("class", SOME)
    wanted = set(meta.labelled(captured("class").graph))
    wanted = {x for x in wanted if x.split(":")[-1] not in ("query", "key", "value")}
    for graph in (program.graph, program.module(check_guards=False).graph):
        assert wanted <= set(meta.labelled(graph))
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path)
    assert set(meta.labelled(loaded.graph)) == set(meta.labelled(program.graph))
    assert sites(loaded) == sites(program)
    x = images(3, seed=17)
    assert torch.equal(run(loaded, x), run(program, x))


def test_each_inserted_operation_tells_its_step(reduced: Reduced, captured: Captured) -> None:
    before, after = captured("class").graph, reduced("class", SOME)[0].graph
    inserted = [
        node
        for node in after.nodes
        if node.op == "call_function"
        and any(":reduce" in x or x.startswith("reduce_tokens:") for x in meta.labels(node))
    ]
    named = {x.split(":")[0] for node in inserted for x in meta.labels(node) if ":reduce." in x}
    assert {"block[0].attention", "block[1].output"} <= named
    assert len(inserted) > len(after.nodes) - len(before.nodes) - 20


def test_parameter_names_and_values_survive(reduced: Reduced, captured: Captured) -> None:
    before, after = captured("class").state_dict, reduced("class", SOME)[0].state_dict
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_program_given_stays_as_it_is(captured: Captured) -> None:
    program = captured("class")
    before, code = text(program), str(program.graph)
    reduce_tokens(program, [step("block[2].attention", "page-rank", 0.5)])
    assert (text(program), str(program.graph)) == (before, code)


def test_plans_compose(reduced: Reduced) -> None:
    """Two plans, one after the other, equal one plan with the steps of both."""
    first = step("block[0].attention", "page-rank", 16, "merge")
    second = step("block[1].attention", "attention-weighted", 11, weigh=False)
    once, _ = reduced("class", [first])
    addresses = sites(once)
    assert addresses.prefix_tokens == 1
    assert addresses["block[0].attention"].tokens == 21
    assert {s.tokens for s in addresses if s.block > 0} == {16}
    assert addresses["block[1].attention"].heads == 2
    assert (
        addresses["block[1].attention"].roles
        == sites(reduced("class", SOME)[0])["block[2].attention"].roles
    )
    twice, record = reduce_tokens(once, [second])
    assert record.tokens["block[1].attention"] == (16, 11)
    x = images(3, seed=18)
    both = by_site([first, second])
    close(run(twice, x), Twin(tiny("class"), both).run(x))
    assert {s.tokens for s in sites(twice) if s.block > 1} == {11}


def test_a_place_before_a_reduction_is_closed(reduced: Reduced) -> None:
    once, _ = reduced("class", SOME)
    with pytest.raises(UnsupportedGraph, match=r"block\[0\]\.attention"):
        draft(once, [step("block[0].attention", "random", 12)])


def test_merging_twice_over_needs_one_plan(reduced: Reduced) -> None:
    once, _ = reduced("class", SOME)
    with pytest.raises(PlanError, match="merges tokens already"):
        draft(once, [step("block[2].attention", "tome", 10, "merge")])


def test_draft_equals_sealed(captured: Captured, reduced: Reduced) -> None:
    module, record = draft(captured("class"), SOME)
    program, sealed = reduced("class", SOME)
    x = images(3, seed=19)
    close(module(x), run(program, x))
    assert record == sealed


def test_the_order_of_steps_does_not_matter(captured: Captured) -> None:
    x = images(2, seed=20)
    forth, back = draft(captured("class"), SOME), draft(captured("class"), SOME[::-1])
    assert torch.equal(forth[0](x), back[0](x))
    assert forth[1] == back[1]


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_allow_it_are_refused(captured: Captured, name: str) -> None:
    with pytest.raises(UnsupportedGraph, match=r"cannot remove tokens at block\[0\]\.output") as e:
        draft(captured(name), [step("block[0].output", "random", 0.5)])
    assert e.value.found
    assert e.value.fix


def test_an_unknown_site_names_the_nearest(captured: Captured) -> None:
    with pytest.raises(PlanError, match=r"unknown site 'block\[1\]\.atention'") as e:
        draft(captured("class"), [step("block[1].atention", "random", 0.5)])
    assert e.value.fix is not None
    assert e.value.fix.startswith("one of block[1].attention")


def test_unknown_rules_and_options_are_refused(captured: Captured) -> None:
    with pytest.raises(PlanError, match="page-rang") as e:
        draft(captured("class"), [step("block[1].attention", "page-rang", 0.5)])
    assert str(e.value.fix).startswith("one of page-rank")
    with pytest.raises(PlanError, match="iteration") as e:
        draft(captured("class"), [step("block[1].attention", "page-rank", 0.5, iteration=3)])
    assert str(e.value.fix).startswith("one of iterations")


def test_two_steps_at_one_place_are_refused(captured: Captured) -> None:
    steps = [step("block[1].mlp", "random", 15), step("block[1].output", "random", 12)]
    with pytest.raises(PlanError, match="same place"):
        draft(captured("class"), steps)


@pytest.mark.parametrize("keep", [1, 22, 500])
def test_more_tokens_than_arrive_or_too_few_are_refused(captured: Captured, keep: int) -> None:
    with pytest.raises(PlanError, match=f"cannot keep {keep} tokens"):
        draft(captured("class"), [step("block[1].output", "random", keep)])


def test_no_step_is_refused(captured: Captured) -> None:
    with pytest.raises(PlanError, match="no step"):
        reduce_tokens(captured("class"), [])


def test_class_attention_needs_a_class_token(captured: Captured) -> None:
    with pytest.raises((PlanError, UnsupportedGraph), match="class"):
        reduce_tokens(captured("mean"), [step("block[1].output", "cls-attention", 0.5)])


def test_attention_is_gone_once_tokens_are_removed_behind_it(captured: Captured) -> None:
    steps = [step("block[1].attention", "tome", 15), step("block[1].output", "page-rank", 12)]
    with pytest.raises(PlanError, match="no longer has"):
        draft(captured("class"), steps)
