"""Pruning inside prefill, held against the same model run layer by layer by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.passes.extend_cache import extend_cache
from prunepass.passes.prune_image_tokens import prune_image_tokens
from prunepass.plans import Plain, Step
from prunepass.vlm import prefill_macs
from prunepass.vlm.cost import check_pays, prompt_macs
from prunepass.vlm.layers import without_layers
from prunepass.vlm.programs import capture_language
from prunepass.vlm.split import split
from tests.reference.language import prefill
from tests.tiny_language import IMAGE_TOKENS, LAYERS, VOCABULARY, small_llava

TOKENS = 31
IMAGE = list(range(4, 20))
TEXT = list(range(20, TOKENS))
CUTS = {1: 12, 2: 6, 4: 3}


@pytest.fixture(scope="module")
def llava() -> Any:
    return small_llava().double()


@pytest.fixture(scope="module")
def dense(llava: Any) -> ExportedProgram:
    return capture_language(
        split(llava).language, channels=32, image_tokens=IMAGE_TOKENS, dtype=torch.float64
    )


def steps(rule: str, *, cuts: dict[int, Any] | None = None, **options: Plain) -> list[Step]:
    return [
        Step(kind="prune_image_tokens", site=f"block[{layer - 1}].output", rule=rule, keep=keep,
             options=options)
        for layer, keep in (CUTS if cuts is None else cuts).items()
    ]  # fmt: skip


def inputs(embeds: Tensor, asking: list[int]) -> tuple[Tensor, ...]:
    batch, tokens = embeds.shape[:2]
    return (
        embeds, torch.ones(batch, tokens, dtype=torch.int64),
        torch.arange(tokens).expand(batch, tokens), torch.tensor(IMAGE).expand(batch, 1, -1),
        torch.tensor(asking).expand(batch, -1), torch.ones(batch, len(asking)),
    )  # fmt: skip


def embeddings(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, TOKENS, 32, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mode", "rule", "options"),
    [
        ("both", "transition-and-instruction", {"positions": "compact", "accumulate": [1, 2, 4]}),
        ("both", "transition-and-instruction", {"accumulate": [1, 2, 3, 4], "absolute": False}),
        ("instruction", "instruction", {"positions": "compact"}),
        ("last", "instruction", {"layer": "own"}),
    ],
)
def test_it_equals_the_model_run_by_hand(
    llava: Any, dense: ExportedProgram, mode: str, rule: str, options: dict[str, Any]
) -> None:
    program, record = prune_image_tokens(dense, steps(rule, **options))
    assert record.applied == tuple(f"block[{layer - 1}].output" for layer in CUTS)
    asking = TEXT if mode != "last" else TEXT[-1:]
    embeds = embeddings()
    found = program.module(check_guards=False)(*inputs(embeds, asking))
    for i in range(2):
        with torch.no_grad():
            twin = prefill(
                llava.model.language_model, llava.lm_head, embeds[i : i + 1], IMAGE, asking,
                cuts=CUTS, accumulate=tuple(options.get("accumulate", ())), mode=mode,
                positions=options.get("positions", "keep_original"),
                absolute=options.get("absolute", True),
            )  # fmt: skip
        torch.testing.assert_close(found[0][i], twin.logits, rtol=1e-10, atol=1e-10)
        for layer in range(LAYERS):
            key = found[1 + 2 * layer][i]
            torch.testing.assert_close(key, twin.keys[layer][0], rtol=1e-10, atol=1e-10)
        assert [k[i].tolist() for k in found[1 + 2 * LAYERS :]] == twin.kept


def test_nothing_to_drop_is_the_program_itself(dense: ExportedProgram) -> None:
    program, _ = prune_image_tokens(dense, steps("instruction", cuts={1: 1.0, 2: 1.0}))
    assert program is dense


def test_random_keeps_the_same_of_every_prompt(dense: ExportedProgram) -> None:
    program, _ = prune_image_tokens(dense, steps("random-image-tokens"))
    found = program.module(check_guards=False)(*inputs(embeddings(3), TEXT))
    for kept in found[1 + 2 * LAYERS :]:
        assert torch.equal(kept[0], kept[1])
        assert torch.equal(kept[0], kept[2])


def test_attention_stays_fused_and_the_cost_is_what_was_reckoned(dense: ExportedProgram) -> None:
    rule = "transition-and-instruction"
    program, _ = prune_image_tokens(dense, steps(rule, accumulate=[1, 2, 4]))
    fused = torch.ops.aten.scaled_dot_product_attention.default
    assert len(program.graph.find_nodes(op="call_function", target=fused)) == LAYERS
    counted = prompt_macs(program, image_tokens=16, text_tokens=14)
    known = {
        "hidden": 32, "intermediate": 56, "layers": LAYERS, "image_tokens": 16, "text_tokens": 14,
        "kv_hidden": 16, "vocabulary": VOCABULARY, "prune_after": tuple(CUTS),
        "keep": tuple(k / 16 for k in CUTS.values()),
    }  # fmt: skip
    reckoned = prefill_macs(**known, rows=7)  # type: ignore[arg-type]
    # Besides, the rows that ask are averaged: one product with every token at each cut.
    assert counted == reckoned + 7 * (30 + 26 + 20)


def test_a_plan_that_cannot_pay_is_refused(dense: ExportedProgram) -> None:
    program, _ = prune_image_tokens(dense, steps("instruction", cuts={4: 15}))
    with pytest.raises(PlanError, match="cannot pay"):
        check_pays(dense, program, image_tokens=16)
    program, _ = prune_image_tokens(dense, steps("instruction", cuts={1: 2}))
    assert check_pays(dense, program, image_tokens=16) < 0.9


def test_the_published_counts(llava: Any) -> None:
    """TP10: 576, 504, 360, 72."""
    dense = capture_language(
        split(llava).language, channels=32, image_tokens=576, dtype=torch.float64
    )
    wanted = steps("instruction", cuts={1: 0.875, 2: 0.625, 3: 0.125})
    program, _ = prune_image_tokens(dense, wanted)
    image = torch.arange(2, 578)[None, None]
    embeds = torch.randn(1, 582, 32, dtype=torch.float64)
    found = program.module(check_guards=False)(
        embeds, torch.ones(1, 582, dtype=torch.int64), torch.arange(582)[None], image,
        torch.arange(578, 582)[None], torch.ones(1, 4),
    )  # fmt: skip
    assert [k.shape[1] - 6 for k in found[1 + 2 * LAYERS :]] == [504, 360, 72]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (steps("instructions"), "no rule called"),
        (steps("instruction", cuts={9: 4}), "image tokens cannot go at"),
        (steps("instruction", cuts={LAYERS: 4}), "no layer is left behind"),
        (steps("instruction", cuts={1: 0.5, 2: 0.5}), "keeps as much as was left"),
        (steps("instruction", layer="last"), "unknown layer"),
        (steps("instruction", places="new"), "has no option"),
        (steps("instruction", positions="new"), "unknown positions"),
        (steps("transition"), "no transition is known"),
        (
            [*steps("instruction", cuts={1: 9}, positions="compact"),
             *steps("instruction", cuts={2: 5})],
            "differ in positions",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(dense: ExportedProgram, wanted: list[Step], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        prune_image_tokens(dense, wanted)


def test_a_module_that_is_read_must_be_there(dense: ExportedProgram) -> None:
    smaller = without_layers(dense, ["block[1].mlp"])
    with pytest.raises(PlanError, match=r"there is no block\[1\]\.mlp whose change") as caught:
        prune_image_tokens(smaller, steps("transition", accumulate=[1, 2, 4]))
    assert len(str(caught.value).splitlines()) == 3
    _, record = prune_image_tokens(smaller, steps("transition", accumulate=[1, 4]))
    assert record.details["taps"] == 4


def test_a_program_without_prompts_is_refused() -> None:
    class Plain_(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    program = torch.export.export(Plain_(), (torch.randn(2, 3),))
    with pytest.raises(PlanError, match="no prefill of a language model"):
        prune_image_tokens(program, steps("instruction"))


def test_attention_that_is_written_out_gets_no_cache() -> None:
    model: Any = small_llava()
    model.set_attn_implementation("eager")
    dense = capture_language(split(model).language, channels=32, image_tokens=IMAGE_TOKENS)
    with pytest.raises(UnsupportedGraph, match="cannot give"):
        extend_cache(dense, (0, 2), positions="compact")
