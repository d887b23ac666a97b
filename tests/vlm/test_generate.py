"""What a bundle answers, held against recomputation without a cache and against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunepass import vlm
from prunepass.backends.onnx_binding import BoundEngine
from prunepass.errors import BackendError, ModelError, UsageError
from tests.tiny_language import (
    IMAGE_TOKENS,
    VOCABULARY,
    in_memory,
    pixels,
    prompt,
    small_llava,
)


def without_cache(
    bundle: vlm.VlmBundle, images: Tensor, tokens: list[int], answer: list[int], length: int
) -> list[Tensor]:
    """Outputs of one prefill over prompt and answer; only the prompt's own text scores."""
    batch = bundle.manifest.layout().prompts([tokens], [len(images)], rows="text")
    ids = torch.cat([batch.input_ids, torch.tensor([answer[:length]], dtype=torch.int64)], 1)
    (embeds,) = bundle.engines["embedding"](ids)
    features = bundle.features([images])
    index = batch.image_positions.reshape(1, -1)
    embeds[0, index[0]] = features.reshape(-1, embeds.shape[2])
    return list(
        bundle.engines["prefill"](
            embeds, torch.ones_like(ids), torch.arange(ids.shape[1])[None], batch.image_positions,
            batch.asking_positions, batch.asking_votes,
        )
    )  # fmt: skip


def test_a_cache_changes_no_token_of_128(bundle: vlm.VlmBundle) -> None:
    images, tokens = pixels(0), prompt(0)
    answer = bundle.generate(images, tokens, max_new_tokens=128).tokens
    assert len(answer) == 128
    assert len(set(answer)) > 3  # an answer of one repeated token would show little
    again = [
        int(without_cache(bundle, images, tokens, answer, n)[0][0, -1].argmax()) for n in range(128)
    ]
    assert answer == again


def test_caches_are_as_long_as_the_manifest_says(bundle: vlm.VlmBundle) -> None:
    tokens = prompt(1)
    talk = bundle.begin([pixels(1)], [tokens], room=4)
    whole = len(tokens) - 1 + IMAGE_TOKENS
    assert bundle.manifest.dropped() == (0, 4, 8, 12, 12)
    assert talk.cache.lengths == [whole - dropped for dropped in bundle.manifest.dropped()]
    assert tuple(talk.cache.lengths) == bundle.manifest.cache_lengths(whole, 1)
    bundle.extend(talk, torch.tensor([[5, 6]]))
    assert talk.cache.lengths == [whole + 2 - dropped for dropped in bundle.manifest.dropped()]


def test_decoding_counts_positions_as_the_policy_says(bundle: vlm.VlmBundle) -> None:
    """TP11: with `compact` the position of a new token is the length of its layer's cache."""
    talk = bundle.begin([pixels(2)], [prompt(2)], room=1)
    here = talk.cache.next_position[0] - talk.cache.dropped
    if bundle.manifest.positions == "compact":
        assert here.tolist() == talk.cache.filled
    else:
        assert set(talk.cache.next_position.tolist()) == {talk.cache.filled[0]}


@pytest.mark.parametrize("size", [2, 8])
def test_a_batch_is_its_singles(bundle: vlm.VlmBundle, size: int) -> None:
    images = [pixels(10 + i) for i in range(size)]
    tokens = [prompt(10 + i, words=3 + i % 4) for i in range(size)]
    together = bundle.generate_batch(images, tokens, max_new_tokens=12)
    for i in range(size):
        alone = bundle.generate(images[i], tokens[i], max_new_tokens=12)
        assert together[i].tokens == alone.tokens
        pad = max(map(len, tokens)) - len(tokens[i])
        for batched, single in zip(together[i].kept, alone.kept, strict=True):
            assert batched == [*range(pad), *(pad + t for t in single)]


def test_text_is_never_dropped(bundle: vlm.VlmBundle) -> None:
    tokens = prompt(3)
    answer = bundle.generate(pixels(3), tokens, max_new_tokens=1)
    whole = bundle.manifest.layout().expanded(tokens, 1)
    text = [i for i, token in enumerate(whole) if token != bundle.manifest.image_token]
    counts = []
    for kept in answer.kept:
        assert kept == sorted(set(kept))
        assert set(text) <= set(kept)
        counts.append(len(kept) - len(text))
    assert counts == [12, 8, 4]


def test_each_image_has_its_quota(bundle: vlm.VlmBundle) -> None:
    tokens = prompt(4, images=2)
    answer = bundle.generate(pixels(4, images=2), tokens, max_new_tokens=6)
    whole = bundle.manifest.layout().expanded(tokens, 2)
    first = whole.index(bundle.manifest.image_token)
    for kept, count in zip(answer.kept, (12, 8, 4), strict=True):
        for start in (first, first + IMAGE_TOKENS):
            assert sum(start <= t < start + IMAGE_TOKENS for t in kept) == count
    assert len(answer.tokens) == 6


def test_three_turns_are_one_pass(bundle: vlm.VlmBundle) -> None:
    images, tokens = pixels(5), prompt(5)
    talk = bundle.begin([images], [tokens], room=64)
    said: list[int] = []
    for turn in range(3):
        for (token,) in bundle.tokens(talk, 5, vlm.Sampling()):
            said.append(token)
        # The last token of an answer is in no cache yet; it leads the next turn.
        more = [said[-1], *range(10 + turn, 14 + turn)]
        bundle.extend(talk, torch.tensor([more]))
        said += more[1:]
    whole = without_cache(bundle, images, tokens, said, len(said))
    torch.testing.assert_close(talk.logits[0], whole[0][0, -1], rtol=1e-10, atol=1e-10)


def test_a_conversation_ends_with_the_context(bundle: vlm.VlmBundle) -> None:
    talk = bundle.begin([pixels(5)], [prompt(5)], room=4)
    left = bundle.manifest.context - talk.cache.filled[0]
    with pytest.raises(UsageError, match="longer than the model's context"):
        bundle.extend(talk, torch.full((1, left + 1), 7))
    bundle.extend(talk, torch.full((1, left), 7))


def test_text_alone_is_what_transformers_says(bundle: vlm.VlmBundle, llava: Any) -> None:
    tokens = [*range(4, 16)]
    found = bundle.generate(None, tokens, max_new_tokens=10)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        told = llava.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )
    assert found.tokens == told[0, len(tokens) :].tolist()
    assert found.kept == []


def test_an_image_at_the_end_is_scored_by_its_last_token(bundle: vlm.VlmBundle) -> None:
    tokens = prompt(6, words=0)
    answer = bundle.generate(pixels(6), tokens, max_new_tokens=3)
    assert len(answer.tokens) == 3
    assert len(answer.kept[-1]) == len(tokens) - 1 + 4


def test_sampling_repeats_with_its_seed(bundle: vlm.VlmBundle) -> None:
    def drawn(seed: int) -> list[int]:
        return bundle.generate(
            pixels(7), prompt(7), max_new_tokens=24, temperature=3.0, top_k=12, seed=seed
        ).tokens

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_an_answer_ends_at_a_stop_token_and_is_told_as_it_comes(bundle: vlm.VlmBundle) -> None:
    free = bundle.generate(pixels(8), prompt(8), max_new_tokens=10).tokens
    told: list[int] = []
    cut = bundle.generate(
        pixels(8), prompt(8), max_new_tokens=10, stop=[free[4]], on_token=told.append
    ).tokens
    assert cut == free[: free.index(free[4])]
    assert told[: len(cut)] == cut


def test_onnx_runtime_says_the_same(onnx_bundle: vlm.VlmBundle) -> None:
    eager = in_memory(small_llava(), method="transprune", keep=(0.75, 0.5, 0.25), after=(1, 2, 3))
    for seed in range(3):
        images, tokens = pixels(20 + seed).float(), prompt(20 + seed)
        one, other = (b.begin([images], [tokens], room=24) for b in (onnx_bundle, eager))
        for kept, again in zip(one.kept, other.kept, strict=True):
            assert kept.tolist() == again.tolist()
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
        said = [
            list(b.tokens(talk, 24, vlm.Sampling()))
            for b, talk in ((onnx_bundle, one), (eager, other))
        ]
        assert said[0] == said[1]
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)


def test_a_cache_lies_where_it_lay(onnx_bundle: vlm.VlmBundle) -> None:
    """The decoder reads the cache in place, and writes into tensors that stay."""
    images, tokens = pixels(40).float(), prompt(40)
    talk = onnx_bundle.begin([images], [tokens], room=8)
    assert isinstance(talk.step, BoundEngine)
    where = [x.data_ptr() for x in talk.cache.layers]
    written: list[dict[str, int]] = []
    for _ in onnx_bundle.tokens(talk, 6, vlm.Sampling()):
        written.append({name: x.data_ptr() for name, x in talk.step.outputs.items()})
    assert [x.data_ptr() for x in talk.cache.layers] == where
    bound = {x.data_ptr() for x in talk.step.inputs.values()}
    assert set(where) <= bound
    assert {x.data_ptr() for x in talk.cache.valid} <= bound
    assert written[0] == {}  # nothing was decoded before the first token
    assert written[1] == written[-1]
    assert len(written[1]) == 1 + len(where)


def test_conversations_do_not_write_into_each_other(onnx_bundle: vlm.VlmBundle) -> None:
    asked = [(pixels(41 + i).float(), prompt(41 + i)) for i in range(2)]
    alone = [onnx_bundle.generate(*one, max_new_tokens=6).tokens for one in asked]
    talks = [onnx_bundle.begin([images], [tokens], room=8) for images, tokens in asked]
    streams = [onnx_bundle.tokens(talk, 6, vlm.Sampling()) for talk in talks]
    together = [[x for (x,) in said] for said in zip(*zip(*streams, strict=True), strict=True)]
    assert together == alone


def test_prefill_and_decoder_have_one_file_of_weights(onnx_bundle: vlm.VlmBundle) -> None:
    folder = onnx_bundle.folder
    assert folder is not None
    assert sorted(p.name for p in folder.iterdir()) == [
        "bundle.json", "decode.onnx", "digests.json", "embedding.onnx", "plan.json",
        "prefill.onnx", "report.json", "vision.onnx", "weights.data",
    ]  # fmt: skip
    weights = sum(x.nbytes for x in small_llava().parameters())
    assert (folder / "weights.data").stat().st_size < 2 * weights


def test_mapped_weights_say_the_same(onnx_bundle: vlm.VlmBundle) -> None:
    assert onnx_bundle.folder is not None
    mapped = vlm.load(onnx_bundle.folder, mapped=True)
    picture, tokens = pixels(2).float(), prompt(2)
    told, found = (b.begin([picture], [tokens], room=1).logits for b in (onnx_bundle, mapped))
    torch.testing.assert_close(found, told, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="on the CPU"):
        vlm.load(onnx_bundle.folder, device="cuda", mapped=True)


def test_a_device_that_is_not_there_is_told(onnx_bundle: vlm.VlmBundle) -> None:
    assert onnx_bundle.folder is not None
    with pytest.raises(UsageError, match="do not run on 'tpu'"):
        vlm.load(onnx_bundle.folder, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="cannot compute on 'cuda' here") as caught:
            vlm.load(onnx_bundle.folder, device="cuda")
        assert len(str(caught.value).splitlines()) == 3


@pytest.mark.slow
def test_a_dense_bundle_says_what_transformers_says(llava: Any) -> None:
    bundle = in_memory(llava, method="none")
    images, tokens = pixels(9), prompt(9)
    ids = torch.tensor([bundle.manifest.layout().expanded(tokens, 1)])
    with torch.no_grad():
        told = llava.generate(
            input_ids=ids, pixel_values=images, attention_mask=torch.ones_like(ids),
            max_new_tokens=16, do_sample=False,
        )  # fmt: skip
    found = bundle.generate(images, tokens, max_new_tokens=16)
    assert found.tokens == told[0, ids.shape[1] :].tolist()
    everything = in_memory(llava, method="transprune", keep=(1.0, 1.0, 1.0), after=(1, 2, 3))
    one, other = (b.begin([images], [tokens], room=1).logits for b in (bundle, everything))
    assert torch.equal(one, other)


def test_what_does_not_fit_is_told(bundle: vlm.VlmBundle) -> None:
    with pytest.raises(UsageError, match="prompt and images disagree"):
        bundle.generate(None, prompt(0))
    with pytest.raises(UsageError, match="prompt and images disagree"):
        bundle.generate(pixels(0, images=2), prompt(0))
    with pytest.raises(UsageError, match="longer than the model's context"):
        bundle.generate(pixels(0), prompt(0, words=600))
    with pytest.raises(UsageError, match="longer than the model's context"):
        bundle.generate(pixels(0), prompt(0), max_new_tokens=500)
    with pytest.raises(UsageError, match="no tokenizer"):
        bundle.generate(pixels(0), "what is it?")
    with pytest.raises(UsageError, match="another size"):
        bundle.generate(torch.zeros(1, 3, 31, 31), prompt(0))
    with pytest.raises(UsageError, match="how a picture becomes an input"):
        bundle.generate("cat.jpg", prompt(0))
    with pytest.raises(UsageError, match="has no token"):
        bundle.generate(None, [])
    with pytest.raises(UsageError, match="same number of images"):
        bundle.generate_batch([pixels(0), None], [prompt(0), [4, 5]])


def test_a_bundle_that_lacks_an_engine_is_refused(onnx_bundle: vlm.VlmBundle) -> None:
    folder = onnx_bundle.folder
    assert folder is not None
    (folder / "decode.onnx").rename(folder / "elsewhere")
    try:
        with pytest.raises(ModelError, match="lacks an engine"):
            vlm.load(folder)
    finally:
        (folder / "elsewhere").rename(folder / "decode.onnx")
    assert vlm.load(folder).manifest == onnx_bundle.manifest
    assert onnx_bundle.manifest.vocabulary == VOCABULARY


@pytest.mark.slow
def test_aot_inductor_says_the_same(tmp_path: Any) -> None:
    wanted: dict[str, Any] = {
        "method": "transprune", "keep": (0.75, 0.5, 0.25), "after": (1, 2, 3)
    }  # fmt: skip
    bundle = vlm.compile(small_llava(), backend="aot_inductor", folder=tmp_path / "aot", **wanted)
    eager = in_memory(small_llava(), **wanted)
    for seed in range(3):
        images, tokens = pixels(30 + seed).float(), prompt(30 + seed)
        one, other = (b.generate(images, tokens, max_new_tokens=12) for b in (bundle, eager))
        assert one == other
