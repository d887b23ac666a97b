"""A vision-language bundle reads a picture and a prompt, and tells which image tokens it keeps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prunepass.errors import UsageError
from prunepass.seeing.grid import patch_grid
from prunepass.seeing.look import Look, as_seen
from prunepass.seeing.paths import GONE, Stage
from prunepass.sources.preprocess import Preprocessing
from prunepass.vlm.generate import VlmBundle
from prunepass.vlm.prepare import shown


def look(bundle: VlmBundle, file: Path, prompt: str) -> Look:
    """What becomes of the image tokens of one picture when a bundle reads a prompt about it.

    Raises:
        UsageError: The bundle has no tokenizer, its pictures have no one size, or its tokens go in
            front of the language model.
    """
    manifest = bundle.manifest
    if manifest.tiling is not None or len(manifest.pixels) != 3 or manifest.image_tokens is None:
        raise UsageError(
            "tokens of a picture that is cut into tiles do not lie on one grid",
            found=f"pictures of {list(manifest.pixels)}",
            fix="a bundle whose pictures have one size",
        )
    if bundle.text is None:
        raise UsageError(
            "this bundle has no tokenizer", found="no tokenizer.json", fix="another bundle"
        )
    images = shown([file], manifest)
    assert isinstance(images, Tensor)
    assert manifest.preprocessing is not None
    picture = as_seen(images[0], Preprocessing.from_dict(manifest.preprocessing))
    talk = bundle.begin([images], [prompt], room=1)
    layout = manifest.layout()
    batch = layout.prompts([bundle.text.prompt(prompt, 1)], [1], rows="text")
    places = batch.image_positions[0, 0]
    grid = patch_grid(picture.shape[1], picture.shape[2], len(places))
    if not talk.kept and manifest.method not in ("none", "downsample"):
        raise UsageError(
            f"{manifest.method} chooses tokens in front of the language model",
            found="a prefill that keeps all it is given",
            fix="a bundle of transprune, fastv or another method that prunes inside prefill",
        )
    return Look(picture, grid, tuple(_stages(talk.kept, places, manifest.first_layers)))


def _stages(kept: list[Tensor], places: Tensor, firsts: tuple[int, ...]) -> list[Stage]:
    found, before = [], len(places)
    for positions, first in zip(kept, firsts[1:], strict=True):
        stays = torch.isin(places, positions[0])
        number = stays.long().cumsum(0) - 1
        owner = torch.where(stays, number, torch.full_like(number, GONE))
        after = int(stays.sum())
        found.append(Stage(f"behind layer {first}", before, after, owner))
        before = after
    return found
