"""Layers dropped from language models: caches counted anew, answers as of the model without."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.analyse.blocks import find_blocks
from prunepass.errors import ModelError, PlanError
from prunepass.graph.edit import open_module
from prunepass.importance.scores import layer_scores
from prunepass.importance.table import LAYER_SCORES
from prunepass.vlm.layers import layers_left, prompt_batch, without_layers
from prunepass.vlm.programs import capture_language
from prunepass.vlm.split import split
from tests.tiny_language import IMAGE_TOKENS, LAYERS, in_memory, pixels, prompt

SUBSETS = [
    pytest.param(gone, marks=() if gone in {(0,), (1, 2, 3)} else pytest.mark.slow)
    for count in range(1, LAYERS)
    for gone in itertools.combinations(range(LAYERS), count)
]


def eager_without(model: Any, gone: tuple[int, ...]) -> Any:
    """A copy of a LLaVA without some layers, its caches numbered anew."""
    made = copy.deepcopy(model)
    language = made.model.language_model
    kept = [layer for i, layer in enumerate(language.layers) if i not in gone]
    language.layers = torch.nn.ModuleList(kept)
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    language.config.num_hidden_layers = len(kept)
    made.config.text_config.num_hidden_layers = len(kept)
    return made.eval()


def inputs(program: ExportedProgram) -> tuple[torch.Tensor, ...]:
    return tuple(program.example_inputs[0])


@pytest.mark.parametrize("gone", SUBSETS)
def test_prefill_without_any_subset_is_the_eager_model_without_it(
    gone: tuple[int, ...], llava: Any, dense: ExportedProgram
) -> None:
    """B4: as many pairs of keys and values as layers are left."""
    smaller = without_layers(dense, [f"block[{i}]" for i in gone])
    found = smaller.module()(*inputs(dense))
    told = split(eager_without(llava, gone)).language(*inputs(dense))
    assert len(found) == len(told) == 1 + 2 * (LAYERS - len(gone))
    for a, b in zip(found, told, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "gone",
    [(1, 3), pytest.param((0, 4), marks=pytest.mark.slow),
     pytest.param((0, 1, 2, 3), marks=pytest.mark.slow)],
)  # fmt: skip
def test_generate_says_what_the_eager_model_without_the_layers_says(
    gone: tuple[int, ...], llava: Any
) -> None:
    bundle = in_memory(llava, method="none", without=[f"block[{i}]" for i in gone])
    assert len(bundle.manifest.shares) == LAYERS - len(gone)
    assert bundle.manifest.without == tuple(f"block[{i}]" for i in gone)
    model = eager_without(llava, gone)
    tokens = bundle.manifest.layout().expanded(prompt(0), 1)
    ids = torch.tensor([tokens])
    told = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels(0),
        max_new_tokens=12, do_sample=False,
    )[0, len(tokens) :].tolist()  # fmt: skip
    assert bundle.generate(pixels(0), prompt(0), max_new_tokens=12).tokens == told


@pytest.mark.slow
def test_together_with_pruned_image_tokens(llava: Any) -> None:
    bundle = in_memory(
        llava, method="transprune", keep=(0.75, 0.5), after=(1, 2), without=["block[1]"]
    )
    talk = bundle.begin([pixels(1)], [prompt(1)], room=4)
    whole = len(prompt(1)) - 1 + IMAGE_TOKENS
    assert bundle.manifest.dropped() == (0, 4, 8, 8)
    assert talk.cache.lengths == [whole, whole - 4, whole - 8, whole - 8]
    assert len(bundle.generate(pixels(1), prompt(1), max_new_tokens=9).tokens) == 9


@pytest.mark.slow
def test_branches_alone(llava: Any) -> None:
    bundle = in_memory(llava, method="none", without=["block[1].mlp", "block[3].attention"])
    assert len(bundle.manifest.shares) == LAYERS - 1
    assert len(bundle.generate(pixels(2), prompt(2), max_new_tokens=5).tokens) == 5


def test_scores_on_prompts_leave_padding_out(llava: Any, dense: ExportedProgram) -> None:
    numbers = [[1, 7, 8, 9, 20, 21], [1, 7, 30, 11]]
    together = layer_scores(dense, [prompt_batch(llava, numbers)], scores=["bi"])
    alone = [layer_scores(dense, [prompt_batch(llava, [n])], scores=["bi"]) for n in numbers]
    for site in (f"block[{i}]" for i in range(LAYERS)):
        parts = [a.values["bi"][site] for a in alone]
        told = (5 * parts[0] + 3 * parts[1]) / 8
        assert together.values["bi"][site] == pytest.approx(told, rel=1e-9)


@pytest.fixture(scope="module")
def single(llava: Any) -> ExportedProgram:
    """The prefill in single precision, as models come; it takes prompts without images too."""
    language = split(copy.deepcopy(llava).float()).language
    return capture_language(language, channels=32, image_tokens=IMAGE_TOKENS, any_image_tokens=True)


def test_layers_of_single_precision_hold_their_own_weights(
    single: ExportedProgram, dense: ExportedProgram
) -> None:
    """Its norms cast the stream to the type it has: what is added is still the branch."""
    (_, block, *_) = find_blocks(open_module(single).graph)
    told = [[name.split(".")[-2] for name in branch.weights] for branch in block.branches]
    assert told == [["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]]
    sites = ["block[1].attention", "block[3]"]
    found = without_layers(single, sites).module()(*inputs(single))
    exact = without_layers(dense, sites).module()(
        *(x.double() if x.is_floating_point() else x for x in inputs(single))
    )
    assert len(found) == len(exact) == 1 + 2 * (LAYERS - 2)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def test_every_score_sees_the_layers_of_a_language_model(
    llava: Any, single: ExportedProgram
) -> None:
    batch = prompt_batch(copy.deepcopy(llava).float(), [[1, 7, 8, 9, 20, 21], [1, 7, 30, 5, 6]])
    found = layer_scores(single, [batch], scores=list(LAYER_SCORES))
    for name, values in found.values.items():
        assert len(values) == 3 * LAYERS, name
        # Numbers of components and of weights are whole and may be alike.
        assert name in ("wpca", "zd") or len(set(values.values())) == 3 * LAYERS, name
        assert all(value != 0 for value in values.values()), name


@pytest.mark.parametrize(
    ("without", "gone"),
    [(["block[1].mlp"], "block[1].mlp"), (["block[1]", "block[2].mlp"], "block[2].mlp")],
)
def test_what_a_method_scores_by_must_be_there(without: list[str], gone: str, llava: Any) -> None:
    """TransPrune behind layer 2 scores by what that layer changes; behind layer 3 another one."""
    asked: dict[str, Any] = {"method": "transprune", "keep": (0.5,), "without": without}
    with pytest.raises(PlanError, match="'transprune' scores image tokens by how") as caught:
        in_memory(llava, after=(2,), **asked)
    assert f"found: {gone} is taken out" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
    assert in_memory(llava, after=(3,), **asked).manifest.dropped()[-1] == IMAGE_TOKENS // 2


def test_wrong_layers_are_refused(llava: Any) -> None:
    with pytest.raises(PlanError, match="no layer"):
        layers_left(LAYERS, ["block[9]"])
    with pytest.raises(PlanError, match="left"):
        in_memory(llava, method="none", without=[f"block[{i}]" for i in range(LAYERS)])


def test_prompts_of_the_wrong_kind(tmp_path: Path, llava: Any) -> None:
    from prunepass.models import vlm_words  # type: ignore[import-not-found, unused-ignore]

    from prunepass.vlm.layers import prompts

    tokenizer = vlm_words.tokenizer()
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\xff\xfe")
    empty = tmp_path / "a.txt"
    empty.write_text("\n\n")
    for wrong in (picture, empty, tmp_path / "none.txt"):
        with pytest.raises(ModelError):
            list(prompts(llava, tokenizer, wrong))
