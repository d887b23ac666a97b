"""One bundle for pictures of any size, held against the model and against bundles of one size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunepass import vlm
from prunepass.backends.eager import EagerEngine
from prunepass.backends.onnx import OnnxBackend
from prunepass.bundle_files import write_digests
from prunepass.errors import PlanError, UsageError
from prunepass.vlm.processor import described
from prunepass.vlm.rewrite import Rewritten, rewrite
from prunepass.vlm.tiles import Tiles
from tests.vlm.tiny_vlms import SIDE, llava_next, llava_onevision, prompt_of

Size = tuple[int, int]
SIZES: tuple[Size, ...] = ((16, 64), (40, 60), (64, 64), (100, 30), (30, 31), (200, 333))
PRUNING: dict[str, Any] = {"method": "transprune", "after": (1, 3), "keep": (0.5, 0.25)}


@pytest.fixture(scope="module")
def model() -> Any:
    return llava_next()


@pytest.fixture(scope="module")
def dense(model: Any) -> vlm.VlmBundle:
    return in_memory(model, method="none")


@pytest.fixture(scope="module")
def made(model: Any) -> Rewritten:
    return rewrite(model, backend="onnx", **PRUNING)


@pytest.fixture(scope="module")
def pruned(made: Rewritten) -> vlm.VlmBundle:
    return run_by_pytorch(made)


def in_memory(model: Any, **rest: Any) -> vlm.VlmBundle:
    return run_by_pytorch(rewrite(model, **rest))


def run_by_pytorch(made: Rewritten) -> vlm.VlmBundle:
    programs, manifest, *_ = made
    engines: dict[str, Any] = {part: EagerEngine.of(program) for part, program in programs.items()}
    return vlm.VlmBundle(manifest, engines, None)


def picture(bundle: vlm.VlmBundle, size: Size, seed: int = 0) -> Tiles:
    assert bundle.manifest.tiling is not None
    generator = torch.Generator().manual_seed(100 + seed)
    number = bundle.manifest.tiling.tiles(size)
    return Tiles(torch.randn(number, 3, SIDE, SIDE, generator=generator), (size,))


def told(model: Any, tokens: list[int], tiles: Tiles, count: int, number: int) -> list[int]:
    """What transformers generates."""
    ids = torch.tensor([[t for t in tokens for _ in range(number if t == 3 else 1)]])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=tiles.pixels[None],
        image_sizes=torch.tensor(tiles.sizes), max_new_tokens=count, do_sample=False,
    )  # fmt: skip
    answer: list[int] = found[0, ids.shape[1] :].tolist()
    return answer


@pytest.mark.parametrize("size", SIZES)
def test_answers_are_those_of_transformers(model: Any, dense: vlm.VlmBundle, size: Size) -> None:
    tiles, tokens = picture(dense, size), prompt_of(model)
    assert dense.manifest.tiling is not None
    number = dense.manifest.tiling.tokens(size)
    found = dense.generate(tiles, tokens, max_new_tokens=10)
    assert found.tokens == told(model, tokens, tiles, 10, number)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=() if s == SIZES[1] else pytest.mark.slow) for s in SIZES]
)
def test_pruned_it_is_a_bundle_of_that_size(model: Any, pruned: vlm.VlmBundle, size: Size) -> None:
    fixed = in_memory(model, image_size=size, **PRUNING)
    tiles, tokens = picture(pruned, size, 1), prompt_of(model)
    one = pruned.begin([tiles], [tokens], room=12)
    other = fixed.begin([tiles.pixels[None]], [tokens], room=12)
    assert fixed.manifest.tiling is None
    for kept, again in zip(one.kept, other.kept, strict=True):
        assert kept.tolist() == again.tolist()
    assert one.cache.lengths == other.cache.lengths
    assert torch.equal(one.cache.dropped, other.cache.dropped)
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
    answers = [
        b.generate(p, tokens, max_new_tokens=10).tokens
        for b, p in ((pruned, tiles), (fixed, tiles.pixels[None]))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("size", SIZES)
def test_the_share_is_of_each_picture(pruned: vlm.VlmBundle, size: Size) -> None:
    tokens, tiles = prompt_of(llava_next()), picture(pruned, size)
    assert pruned.manifest.tiling is not None
    number = pruned.manifest.tiling.tokens(size)
    talk = pruned.begin([tiles], [tokens], room=1)
    left = [kept.shape[1] - (len(tokens) - 1) for kept in talk.kept]
    assert left == [int(number * share) for share in PRUNING["keep"]]
    first, *others = left
    assert pruned.manifest.left(number) == (number, first, first, *others)


@pytest.mark.slow
def test_onnx_runtime_says_the_same(
    model: Any, made: Rewritten, pruned: vlm.VlmBundle, tmp_path: Path
) -> None:
    programs, manifest, *_ = made
    for part, program in programs.items():
        (tmp_path / part).mkdir()
        OnnxBackend().build(program, tmp_path / part)
    (tmp_path / "bundle.json").write_text(manifest.to_json())
    write_digests(tmp_path)
    bundle = vlm.load(tmp_path)
    assert bundle.manifest == manifest
    tokens = prompt_of(model)
    for size in SIZES:
        tiles = picture(bundle, size, 2)
        one, other = (b.begin([tiles], [tokens], room=9) for b in (bundle, pruned))
        for kept, again in zip(one.kept, other.kept, strict=True):
            assert kept.tolist() == again.tolist()
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
        said = [
            list(b.tokens(talk, 8, vlm.Sampling())) for b, talk in ((bundle, one), (pruned, other))
        ]
        assert said[0] == said[1]


def test_a_batch_is_its_singles(model: Any, pruned: vlm.VlmBundle) -> None:
    """Two pictures of two sizes with the same number of tokens."""
    tokens = [prompt_of(model), [1, 9, 3, 12]]
    tiles = [picture(pruned, (16, 64), 3), picture(pruned, (17, 64), 4)]
    together = pruned.generate_batch(tiles, tokens, max_new_tokens=6)
    for i in range(2):
        alone = pruned.generate(tiles[i], tokens[i], max_new_tokens=6)
        assert together[i].tokens == alone.tokens


def test_several_pictures_of_a_prompt(model: Any, dense: vlm.VlmBundle) -> None:
    tokens = prompt_of(model, 2)
    one, other = picture(dense, (40, 60), 5), picture(dense, (40, 60), 6)
    both = Tiles(torch.cat([one.pixels, other.pixels]), one.sizes + other.sizes)
    whole = dense.begin([both], [tokens], room=1)
    features = dense.features([both])
    assert torch.equal(features, torch.cat([dense.features([x]) for x in (one, other)]))
    assert whole.cache.lengths[0] == len(tokens) - 2 + 2 * features.shape[1]


def test_text_alone(model: Any, pruned: vlm.VlmBundle) -> None:
    tokens = [*range(4, 16)]
    ids = torch.tensor([tokens])
    found = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert pruned.generate(None, tokens, max_new_tokens=6).tokens == found[0, 12:].tolist()


def test_a_file_says_what_its_processor_makes_of_it(
    model: Any, dense: vlm.VlmBundle, tmp_path: Path
) -> None:
    """No tile is prepared by transformers where the bundle runs."""
    from PIL import Image
    from transformers import LlavaNextImageProcessorPil

    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[list(grid) for grid in dense.manifest.tiling.grids],  # type: ignore[union-attr]
    )  # fmt: skip
    stored = described(SimpleNamespace(image_processor=processor), (3, SIDE, SIDE), 3, tiles=True)
    manifest = dataclasses.replace(dense.manifest, preprocessing=stored["preprocessing"])
    bundle = vlm.VlmBundle(manifest, dense.engines, None)
    path, tokens = tmp_path / "picture.png", prompt_of(model)
    for size in ((50, 90), (90, 37)):
        picture = Image.radial_gradient("L").convert("RGB").resize((size[1], size[0]))
        picture.save(path)
        pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
        number = bundle.manifest.tiling.tokens(size)  # type: ignore[union-attr]
        answer = bundle.generate(path, tokens, max_new_tokens=8).tokens
        assert answer == told(model, tokens, Tiles(pixels, (size,)), 8, number)


def test_what_does_not_fit_is_told(model: Any, pruned: vlm.VlmBundle) -> None:
    tokens = prompt_of(model)
    sizes = [picture(pruned, size) for size in SIZES[:2]]
    for wrong, match in (
        (torch.zeros(1, 3, SIDE, SIDE), "of any size, cut into tiles"),
        (Tiles(torch.zeros(2, 3, SIDE, SIDE), ((40, 60),)), "do not fit the sizes"),
        (Tiles(torch.zeros(5, 3, SIDE, SIDE + 1), ((64, 64),)), "do not fit the sizes"),
    ):
        with pytest.raises(UsageError, match=match) as caught:
            pruned.generate(wrong, tokens)
        assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(UsageError, match="same number of tokens") as caught:
        pruned.generate_batch(sizes, [tokens, tokens])
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(UsageError, match="prompt and images disagree"):
        pruned.generate(None, tokens)


def test_what_needs_one_size_is_refused(model: Any) -> None:
    for method in ("divprune", "visionzip"):
        with pytest.raises(PlanError, match="whose size is known"):
            rewrite(model, method=method, keep=(0.25,))
    with pytest.raises(PlanError, match="nothing would be left"):
        rewrite(model, method="fastv", after=(1,), keep=(0.05,))
    with pytest.raises(UsageError, match="pictures of any size, a bundle of one"):
        rewrite(llava_onevision(), method="none")
