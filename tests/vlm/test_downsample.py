"""The baseline of smaller pictures, held against models that are shown a smaller picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunepass import vlm
from prunepass.backends.eager import EagerEngine
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.planners.image_methods import image_steps, picture_share
from prunepass.vlm.downsample import cells, downsampled, smaller_grid
from prunepass.vlm.patches import pictures_of
from prunepass.vlm.rewrite import rewrite
from tests.vlm.tiny_vlms import (
    FAMILIES,
    IMAGE,
    llava,
    model_inputs,
    pictures,
    prompt_of,
    qwen2_vl,
)


def by_hand(pixels: Tensor, height: int, width: int) -> Tensor:
    return nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)


def test_cells_are_square_and_whole() -> None:
    assert cells((3, 336, 336), 576) == (24, 24)
    assert cells((3, 32, 48), 24) == (4, 6)
    assert cells((3, 32, 32), 15) is None
    assert cells((5, 3, 32, 32), 16) is None


def test_a_smaller_grid_keeps_proportions_and_the_share() -> None:
    assert smaller_grid((16, 16), 0.5) == (11, 11)
    assert smaller_grid((16, 16), 0.25) == (8, 8)
    assert smaller_grid((16, 16), 0.1) == (5, 5)
    assert smaller_grid((4, 6), 0.5) == (3, 4)
    assert smaller_grid((4, 6), 1.0) == (4, 6)
    assert smaller_grid((4, 6), 0.01) == (1, 1)


def test_llava_says_what_it_says_to_a_smaller_picture(tmp_path: Path) -> None:
    model = llava()
    bundle = vlm.compile(model, method="downsample", keep=(0.6,), folder=tmp_path / "bundle")
    assert bundle.manifest.image_tokens == 9
    assert bundle.manifest.pixels == (3, 32, 32)
    pixels, tokens = pictures(FAMILIES["llava"], 1, 2), prompt_of(model, 2)
    with torch.no_grad():
        tower = model.model.vision_tower(
            by_hand(pixels, 24, 24), interpolate_pos_encoding=True, output_hidden_states=True
        )
        features = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
        ids = torch.tensor([bundle.manifest.layout().expanded(tokens, 2)])
        embeds = model.get_input_embeddings()(ids)
        embeds[ids == IMAGE] = features.flatten(0, 1)
        told = model.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -1]
        logits = model.lm_head(told)
    talk = bundle.begin([pixels], [tokens], room=1)
    torch.testing.assert_close(talk.logits, logits, rtol=1e-4, atol=1e-4)
    assert talk.kept == []
    assert talk.cache.lengths == [ids.shape[1]] * 4


@pytest.mark.slow
def test_qwen_says_what_it_says_to_a_smaller_picture() -> None:
    model, family = qwen2_vl(), FAMILIES["qwen2-vl"]
    programs, manifest, *_ = rewrite(model, method="downsample", keep=(0.5,), image_size=(32, 48))
    engines: dict[str, Any] = {part: EagerEngine.of(program) for part, program in programs.items()}
    bundle = vlm.VlmBundle(manifest, engines, None)
    assert manifest.grid == (3, 4)
    assert manifest.image_tokens == 12
    pixels, tokens = pictures(family, 2), prompt_of(model)
    whole = manifest.layout().expanded(tokens, 1)
    inputs = model_inputs(family, whole, by_hand(pixels, 24, 32))
    told = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(whole) :]
    assert bundle.generate(pixels, tokens, max_new_tokens=8).tokens == told.tolist()


def test_all_of_a_picture_is_the_picture() -> None:
    model = llava()
    whole = pictures_of(model)
    assert downsampled(model, whole, image_tokens=16, share=1.0) is whole


@pytest.mark.parametrize(
    ("name", "image_tokens"),
    [("llava-onevision", 60), ("idefics3", 16), ("internvl", 16), ("gemma3", 16), ("mistral3", 30)],
)
def test_encoders_of_one_size_are_refused(name: str, image_tokens: int) -> None:
    family = FAMILIES[name]
    model = family.make()
    whole = pictures_of(model, family.image_size)
    with pytest.raises(UnsupportedGraph, match="takes no smaller picture") as caught:
        downsampled(model, whole, image_tokens=image_tokens, share=0.25)
    assert len(str(caught.value).splitlines()) == 3


def test_what_makes_no_sense_is_refused() -> None:
    wanted: dict[str, Any] = {"layers": 4, "image_tokens": 16}
    with pytest.raises(PlanError, match="takes tokens out once"):
        image_steps("downsample", keep=(0.5, 0.25), **wanted)
    with pytest.raises(PlanError, match="takes tokens out once"):
        picture_share((0.5, 0.25))
    with pytest.raises(PlanError, match="before the first layer"):
        image_steps("downsample", keep=(0.5,), after=(1,), **wanted)
    with pytest.raises(PlanError, match="keep"):
        image_steps("downsample", keep=(1.5,), **wanted)
    model = llava()
    with pytest.raises(PlanError, match="no options"):
        downsampled(model, pictures_of(model), image_tokens=16, share=0.5, options={"seed": 1})
