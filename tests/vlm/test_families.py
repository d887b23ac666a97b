"""Bundles of each family of transformers, held against the model itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunepass import vlm
from prunepass.agreement import difference
from prunepass.backends.eager import EagerEngine
from prunepass.errors import PlanError, UnsupportedGraph, UsageError
from prunepass.vlm.facts import facts
from prunepass.vlm.patches import flat_patches, pictures_of
from prunepass.vlm.processor import described
from prunepass.vlm.rewrite import rewrite
from prunepass.vlm.split import split
from prunepass.vlm.verify import example_of, what_tokens_see
from tests.vlm import tiny_vlms
from tests.vlm.tiny_vlms import FAMILIES, Family, model_inputs, pictures, prompt_of

AFTER, KEEP = (1, 2, 3), (0.75, 0.5, 0.25)
SEES = {"paligemma": "prompt", "gemma3": "image"}


def compiled(name: str, folder: Path, **rest: Any) -> tuple[Any, Family, vlm.VlmBundle]:
    family = FAMILIES[name]
    model = family.make()
    rest = {"image_size": family.image_size, **rest}
    return model, family, vlm.compile(model, folder=folder / "bundle", **rest)


def rewritten(name: str, **rest: Any) -> tuple[Any, Family, vlm.VlmBundle]:
    """A bundle whose programs are run as they are, which saves building and loading them."""
    family = FAMILIES[name]
    model = family.make()
    programs, manifest, *_ = rewrite(model, image_size=family.image_size, **rest)
    engines: dict[str, Any] = {part: EagerEngine.of(program) for part, program in programs.items()}
    return model, family, vlm.VlmBundle(manifest, engines, None)


def told(model: Any, family: Family, bundle: vlm.VlmBundle, tokens: list[int], pixels: Tensor,
         count: int) -> list[int]:  # fmt: skip
    """Tokens that transformers generates."""
    whole = bundle.manifest.layout().expanded(tokens, len(pixels))
    inputs = model_inputs(family, whole, pixels)
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    answer: list[int] = found[0, len(whole) :].tolist()
    return answer


def masked_logits(model: Any, inputs: dict[str, Tensor], kept: list[Tensor]) -> Tensor:
    """[1, V]: the model itself, whose layers are kept from seeing tokens that are gone.

    Args:
        model: Unpruned.
        inputs: One prompt [1, T].
        kept: For each stage behind layers 1, 2, ..., the tokens [1, T'] that it sees.
    """
    length = inputs["input_ids"].shape[1]
    inner = model.model
    language = getattr(inner, "language_model", None) or inner.text_model
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]

    def hook(stage: int) -> Any:
        seen = torch.zeros(length, dtype=torch.bool)
        seen[kept[stage][0]] = True

        def change(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            mask = kwargs.get("attention_mask")
            mask = causal if mask is None else mask
            assert mask.dtype is torch.bool
            itself = torch.eye(length, dtype=torch.bool)
            return args, {**kwargs, "attention_mask": (mask & seen) | itself}

        return change

    handles = [
        layer.register_forward_pre_hook(hook(min(number, len(kept)) - 1), with_kwargs=True)
        for number, layer in enumerate(language.layers)
        if number > 0
    ]
    try:
        with torch.no_grad():
            logits: Tensor = model(**inputs, use_cache=False).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits


LIKE_OTHERS = ("llava-onevision", "qwen2-vl", "smolvlm", "idefics3", "internvl", "mistral3")
"""Families whose parts are those of one that is tested by default."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LIKE_OTHERS else ()) for n in FAMILIES],
)
def test_answers_are_those_of_transformers(name: str) -> None:
    model, family, bundle = rewritten(name, method="none")
    assert bundle.manifest.sees == SEES.get(name, "causal")
    for images in (1, 2):
        tokens, pixels = prompt_of(model, images), pictures(family, images, images)
        found = bundle.generate(pixels, tokens, max_new_tokens=10).tokens
        assert found == told(model, family, bundle, tokens, pixels, 10)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "qwen3-vl" else pytest.mark.slow) for name in FAMILIES],
)
def test_layers_see_what_was_kept(name: str) -> None:
    """Tokens that are gone are as good as hidden from the layers behind."""
    model, family, bundle = rewritten(
        name, method="transprune", after=AFTER, keep=KEEP, positions="keep_original"
    )
    for images in (1, 2):
        tokens, pixels = prompt_of(model, images), pictures(family, images, images)
        talk = bundle.begin([pixels], [tokens], room=4)
        whole = bundle.manifest.layout().expanded(tokens, images)
        number = bundle.manifest.image_tokens
        gone = [len(whole) - kept.shape[1] for kept in talk.kept]
        assert gone == [images * (number - int(number * share)) for share in KEEP]
        expected = masked_logits(model, model_inputs(family, whole, pixels), talk.kept)
        assert difference(talk.logits, expected) < 1e-4
        assert len(bundle.generate(pixels, tokens, max_new_tokens=5).tokens) == 5


@pytest.mark.slow
def test_all_of_an_image_kept_is_the_model_itself(tmp_path: Path) -> None:
    model, family, bundle = compiled(
        "qwen2-vl", tmp_path, method="transprune", after=AFTER, keep=(1.0, 1.0, 1.0)
    )  # fmt: skip
    tokens, pixels = prompt_of(model), pictures(family, 3)
    found = bundle.generate(pixels, tokens, max_new_tokens=10).tokens
    assert found == told(model, family, bundle, tokens, pixels, 10)


def test_flat_patches_are_those_of_the_processor() -> None:
    family = FAMILIES["qwen2-vl"]
    pixels = pictures(family, 0, 2)
    found = flat_patches(pixels, patch=4, merge=2, frames=2)
    torch.testing.assert_close(found, family.inputs(pixels)["pixel_values"], rtol=0, atol=0)


def test_a_model_of_any_size_is_told_one() -> None:
    model = tiny_vlms.qwen2_vl()
    with pytest.raises(UsageError, match="pictures of any size"):
        pictures_of(model)
    with pytest.raises(UsageError, match="multiples of 8"):
        pictures_of(model, (32, 36))
    assert pictures_of(model, 32).grid == (4, 4)
    with pytest.raises(UsageError, match="takes pictures of 32 x 32"):
        pictures_of(tiny_vlms.llava(), 64)


def test_a_processor_of_any_size_resizes_to_the_one_of_the_bundle() -> None:
    transformers = pytest.importorskip("transformers")
    processor = SimpleNamespace(image_processor=transformers.Qwen2VLImageProcessor())
    found = described(processor, (3, 56, 84), 3)["preprocessing"]
    assert (found["height"], found["width"], found["fit"]) == (56, 84, "squash")
    assert "preprocessing" not in described(processor, (5, 3, 32, 32), 3)


def test_compact_positions_are_refused_with_rows_and_columns() -> None:
    with pytest.raises(PlanError, match="cannot be numbered anew"):
        rewritten("qwen2-vl", method="transprune", after=AFTER, keep=KEEP, positions="compact")


def test_windows_bound_the_context() -> None:
    model = tiny_vlms.gemma3()
    assert facts(model).context == 64


class Scaled(nn.Module):
    """A LLaVA whose logits are capped outside of its parts, which no part tells."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = tiny_vlms.llava()
        self.model, self.lm_head = self.whole.model, self.whole.lm_head
        self.config = self.whole.config

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.whole.get_input_embeddings()
        return found

    def forward(self, **inputs: Any) -> Any:
        found = self.whole(**inputs)
        found.logits = found.logits.tanh()
        return found


def test_a_model_that_does_more_than_its_parts_is_refused(tmp_path: Path) -> None:
    model = Scaled().eval()
    with pytest.raises(UnsupportedGraph, match="does more with an image than its parts") as caught:
        vlm.compile(model, method="none", backend="eager", folder=tmp_path / "bundle")
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_takes_no_picture_is_refused() -> None:
    model = tiny_vlms.llava()
    pictures = pictures_of(model)
    known = facts(model, pictures)
    with pytest.raises(UnsupportedGraph, match="does not take a prompt"):
        example_of(model, pictures, known, image_tokens=15)  # it makes 16


def test_text_alone_is_refused_where_it_is_read_both_ways() -> None:
    _, _, bundle = rewritten("paligemma", method="none")
    with pytest.raises(UsageError, match="with a picture only"):
        bundle.generate(None, [1, 7, 8, 9])


def test_what_tokens_see_is_found_in_half_precision() -> None:
    model = tiny_vlms.gemma3().bfloat16()
    pictures = pictures_of(model)
    known = facts(model, pictures)
    count = split(model, pictures).vision(pictures.examples(known.dtype)[:1]).shape[1]
    example = example_of(model, pictures, known, image_tokens=count)
    assert what_tokens_see(model, pictures, example) == "image"
