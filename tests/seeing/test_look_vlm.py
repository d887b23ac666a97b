"""Image tokens that stay inside prefill, on the grid of their picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunepass import vlm
from prunepass.seeing.look_vlm import _stages, look
from prunepass.seeing.paint import left
from prunepass.sources.preprocess import Preprocessing
from tests.tiny_language import IMAGE_TOKENS, in_memory, small_llava


class Words:
    """A tokenizer of one prompt."""

    def prompt(self, text: str, images: int) -> list[int]:
        return [1, 3, 7, 9, 11]

    def text(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def test_positions_of_the_prompt_become_patches() -> None:
    places = torch.tensor([2, 3, 4, 5])
    kept = [torch.tensor([[0, 1, 3, 5, 6]]), torch.tensor([[0, 1, 5, 6]])]
    first, second = _stages(kept, places, (0, 2, 4))
    assert (first.site, first.before, first.after) == ("behind layer 2", 4, 2)
    assert first.owner.tolist() == [-1, 0, -1, 1]
    assert second.owner.tolist() == [-1, -1, -1, 0]


@pytest.mark.slow
def test_a_bundle_shows_what_its_prefill_keeps(pictures: Path) -> None:
    import dataclasses

    bundle = in_memory(
        small_llava(), method="transprune", keep=(0.75, 0.5, 0.25), after=(1, 2, 3),
        positions="compact",
    )  # fmt: skip
    side = bundle.manifest.pixels[1]
    preprocessing = Preprocessing(height=side, width=side, resize=side, fit="squash")
    manifest = dataclasses.replace(bundle.manifest, preprocessing=preprocessing.to_dict())
    seeing = vlm.VlmBundle(manifest, bundle.engines, Words())  # type: ignore[arg-type]
    file = sorted(pictures.iterdir())[0]
    found = look(seeing, file, "what is it")
    answer = seeing.generate([file], [1, 3, 7, 9, 11], max_new_tokens=1)
    rows, columns = found.grid
    assert rows * columns == IMAGE_TOKENS
    assert [left(s) for s in found.stages] == [s.after for s in found.stages]
    assert [s.after for s in found.stages] == [int(IMAGE_TOKENS * k) for k in (0.75, 0.5, 0.25)]
    for stage, kept in zip(found.stages, answer.kept, strict=True):
        stays = [i for i, owner in enumerate(stage.owner.tolist()) if owner >= 0]
        # The image stands behind the first token of this prompt.
        assert [i + 1 for i in stays] == [k for k in kept if 1 <= k <= IMAGE_TOKENS]
