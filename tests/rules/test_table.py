from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from prunepass.errors import PlanError
from prunepass.rules.merge import merge_tokens
from prunepass.rules.selection import Selection
from prunepass.rules.table import ROLES, RULES, UNREAD, rule, select
from tests.rules.example import permute_tokens, roles, shuffled

EVERY = tuple(name for name in RULES if name != UNREAD)
# These split tokens by the parity of their index.
MATCHING = ("tome", "attention-weighted", "similar-hidden")
TOKENS, KEEP, PREFIX = 13, 8, 1


def check(selection: Selection, *, batch: int, keep: int, prefix: int, tokens: int) -> None:
    assert selection.kept.shape == (batch, keep)
    assert selection.dropped.shape == selection.target.shape == (batch, tokens - keep)
    for image in range(batch):
        kept, dropped, target = (part[image].tolist() for part in selection[:3])
        assert kept == sorted(set(kept))
        assert kept[:prefix] == list(range(prefix))
        assert sorted(kept + dropped) == list(range(tokens))
        assert all(token in kept and token >= prefix for token in target)


@pytest.mark.parametrize("name", EVERY)
def test_rows_agree_with_their_functions(name: str) -> None:
    row = RULES[name]
    assert row.name == name
    assert set(row.needs) <= set(ROLES)
    json.dumps(dict(row.options))
    wanted = set(inspect.signature(row.function).parameters)
    given = set(row.needs) | set(row.options)
    given |= {"keep", "prefix"} if row.kind == "selection" else set()
    given |= {"prefix"} if row.takes_prefix else set()
    assert given <= wanted
    assert wanted - given <= {"kept", "renormalise"}  # of page_rank_score: for zero-tprune alone
    for option, default in row.options.items():
        stated = inspect.signature(row.function).parameters[option].default
        if stated is not inspect.Parameter.empty and not isinstance(default, list):
            assert stated == default


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_g2_g3_g6_special_tokens_order_and_count(name: str, prefix: int) -> None:
    selection = select(name, roles(3), keep=10, prefix=prefix)
    check(selection, batch=3, keep=10, prefix=prefix, tokens=TOKENS)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "cls-attention"])
def test_without_prefix_tokens(name: str) -> None:
    check(select(name, roles(3), keep=8, prefix=0), batch=3, keep=8, prefix=0, tokens=TOKENS)


@pytest.mark.parametrize("name", EVERY)
def test_keeping_all_is_the_identity(name: str) -> None:
    selection = select(name, roles(2), keep=TOKENS, prefix=PREFIX)
    check(selection, batch=2, keep=TOKENS, prefix=PREFIX, tokens=TOKENS)
    given = roles(2)
    merged, _ = merge_tokens(given["hidden"], given["size"], selection)
    assert torch.equal(merged, given["hidden"])


@pytest.mark.parametrize("name", [name for name in EVERY if name != "random"])
def test_g4_permuting_tokens_permutes_the_selection(name: str) -> None:
    order = list(range(TOKENS))
    if name in MATCHING:
        order[2::2], order[1::2] = shuffled(order[2::2]), shuffled(order[1::2], seed=1)
    else:
        order[1:] = shuffled(order[1:])
    given, named = roles(3), torch.tensor(order)
    here = select(name, given, keep=KEEP, prefix=PREFIX)
    there = select(name, permute_tokens(given, named), keep=KEEP, prefix=PREFIX)
    assert torch.equal(named[there.kept].sort().values, here.kept)

    def joined(selection: Selection, label: Tensor) -> list[dict[int, int]]:
        into = label[selection.target].tolist()
        gone = label[selection.dropped].tolist()
        return [dict(zip(*pair, strict=True)) for pair in zip(gone, into, strict=True)]

    assert joined(there, named) == joined(here, torch.arange(TOKENS))


@pytest.mark.parametrize("name", EVERY)
def test_g5_two_images_are_two_single_images(name: str) -> None:
    given = roles(2)
    both = select(name, given, keep=KEEP, prefix=PREFIX)
    for image in range(2):
        alone = {role: value[image : image + 1] for role, value in given.items()}
        single = select(name, alone, keep=KEEP, prefix=PREFIX)
        for part, whole in zip(single[:3], both[:3], strict=True):
            assert torch.equal(part[0], whole[image])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_g11_half_precision_chooses_the_same_set(name: str, seed: int) -> None:
    # With 13 tokens the gaps between scores of these seeds exceed float16's rounding.
    low = roles(2, seed=seed, dtype=torch.float16)
    high = {role: value.float() for role, value in low.items()}
    here = select(name, low, keep=KEEP, prefix=PREFIX)
    there = select(name, high, keep=KEEP, prefix=PREFIX)
    assert torch.equal(here.kept, there.kept)


@pytest.mark.parametrize("name", EVERY)
def test_large_half_precision_values_stay_finite(name: str) -> None:
    given = roles(2, dtype=torch.float16)
    for role in ("query", "key", "value", "hidden"):
        given[role] = given[role] * 1e4
    selection = select(name, given, keep=KEEP, prefix=PREFIX)
    check(selection, batch=2, keep=KEEP, prefix=PREFIX, tokens=TOKENS)
    single = {role: value.float() for role, value in given.items()}
    assert torch.equal(selection.kept, select(name, single, keep=KEEP, prefix=PREFIX).kept)
    merged, size = merge_tokens(given["hidden"], given["size"], selection)
    assert merged.isfinite().all()
    assert size.sum(1).tolist() == [TOKENS, TOKENS]


@pytest.mark.parametrize("name", EVERY)
def test_ties_everywhere_still_split_the_tokens(name: str) -> None:
    given = {role: torch.ones_like(value) for role, value in roles(2).items()}
    given["attention"] = given["attention"] / TOKENS
    selection = select(name, given, keep=KEEP, prefix=PREFIX)
    check(selection, batch=2, keep=KEEP, prefix=PREFIX, tokens=TOKENS)


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_left_alone(name: str) -> None:
    given = roles(2)
    before = {role: value.clone() for role, value in given.items()}
    select(name, given, keep=KEEP, prefix=PREFIX)
    assert all(torch.equal(given[role], before[role]) for role in given)


class Reduce(torch.nn.Module):
    """A rule and the merge it leads to, to be exported."""

    def __init__(self, name: str, **options: object) -> None:
        super().__init__()
        self.name, self.options = name, options

    def forward(
        self, attention: Tensor, key: Tensor, hidden: Tensor, size: Tensor, scan_output: Tensor
    ) -> object:
        given = {"attention": attention, "key": key, "hidden": hidden, "scan_output": scan_output}
        selection = select(self.name, given, keep=KEEP, prefix=PREFIX, **self.options)
        return *selection[:3], *merge_tokens(hidden, size, selection)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in EVERY]
    + [
        ("zero-tprune", {"order": "i-s", "similar": 2, "metric": "minkowski-3"}),
        ("zero-tprune", {"partition": "full", "similar": 3, "silence_prefix": True}),
        ("zero-tprune", {"partition": "random", "similar": 3, "renormalise": False}),
        ("attention-weighted", {"power": 0.25}),
    ],
)
def test_exported_rule_keeps_the_same_tokens_in_onnx_runtime(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    needed = ("attention", "key", "hidden", "size", "scan_output")

    def inputs(batch: int, seed: int) -> tuple[Tensor, ...]:
        given = roles(batch, seed=seed, dtype=torch.float32)
        return tuple(given[role] for role in needed)

    module = Reduce(name, **options)
    batch_axis = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        module, inputs(3, 0), dynamic_shapes=tuple({0: batch_axis} for _ in needed)
    )
    outputs = [node.meta["val"] for node in program.graph.output_node().args[0]]
    assert [tuple(out.shape[1:]) for out in outputs] == [
        (KEEP,), (TOKENS - KEEP,), (TOKENS - KEEP,), (KEEP, 10), (KEEP,)
    ]  # fmt: skip
    path = tmp_path / "rule.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, seed in ((3, 1), (1, 2), (5, 3)):
        given = inputs(batch, seed)
        expected = module(*given)
        reloaded = program.module()(*given)
        # An input that the rule does not use is no input of the graph.
        names = {entry.name for entry in session.get_inputs()}
        feed = {k: v.numpy() for k, v in zip(needed, given, strict=True) if k in names}
        results = session.run(None, feed)
        for result, again, part in zip(results[:3], reloaded[:3], expected[:3], strict=True):
            assert torch.equal(again, part)
            assert np.array_equal(result, part.numpy())
        for result, part in zip(results[3:], expected[3:], strict=True):
            np.testing.assert_allclose(result, part.numpy(), rtol=1e-5, atol=1e-6)


def test_unknown_names_list_the_nearest_first() -> None:
    with pytest.raises(PlanError, match=r"try:   one of zero-tprune, "):
        rule("zerotprune")
    with pytest.raises(PlanError, match=r"try:   one of iterations, "):
        select("page-rank", roles(1), keep=5, prefix=1, iteration=3)
    with pytest.raises(PlanError, match="without options"):
        select("cls-attention", roles(1), keep=5, prefix=1, seed=3)


def test_missing_roles_are_named() -> None:
    given = roles(1)
    with pytest.raises(PlanError, match="lacks key"):
        select("tome", {"hidden": given["hidden"]}, keep=5, prefix=1)
    with pytest.raises(PlanError, match="lacks key or hidden"):
        select("page-rank", {"attention": given["attention"]}, keep=5, prefix=1)


def test_options_override_the_defaults() -> None:
    given = roles(2)
    here = select("random", given, keep=5, prefix=1, seed=1)
    assert not torch.equal(here.kept, select("random", given, keep=5, prefix=1).kept)


def test_a_score_rule_aims_by_keys_and_without_them_by_hidden() -> None:
    given = roles(2)
    by_key = select("page-rank", given, keep=5, prefix=1)
    without = {role: value for role, value in given.items() if role != "key"}
    by_hidden = select("page-rank", without, keep=5, prefix=1)
    assert torch.equal(by_key.kept, by_hidden.kept)
    assert not torch.equal(by_key.target, by_hidden.target)


@pytest.mark.parametrize(
    "name", [n for n in EVERY if RULES[n].kind == "score" and n != "cls-attention"]
)
def test_fixed_tokens_stay_and_are_joined_by_none(name: str) -> None:
    """SS8: in every item, once."""
    given = roles(3)
    fixed = torch.zeros(3, TOKENS, dtype=torch.bool)
    for item, place in enumerate((6, 11, 2)):
        fixed[item, place] = True
    selection = select(name, {**given, "fixed": fixed}, keep=4, prefix=0)
    check(selection, batch=3, keep=4, prefix=0, tokens=TOKENS)
    for item, place in enumerate((6, 11, 2)):
        assert selection.kept[item].tolist().count(place) == 1
        assert place not in selection.target[item].tolist()
