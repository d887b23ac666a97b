"""Answers of a compiled vision-language model: prefill once, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prunepass.backends.onnx_binding import in_place
from prunepass.backends.protocol import Engine
from prunepass.errors import BackendError, UsageError
from prunepass.vlm.cache import Cache
from prunepass.vlm.conversation import Answer, Conversation
from prunepass.vlm.layout import Prompts, Rows, with_images
from prunepass.vlm.manifest import VlmManifest
from prunepass.vlm.prepare import Shown, check_shown, image_tokens, shown
from prunepass.vlm.sampling import Sampling
from prunepass.vlm.text import Text
from prunepass.vlm.tiles import Tiles, joined

Prompt = str | Sequence[int]


class VlmBundle:
    """A compiled vision-language model, ready to answer.

    Args:
        manifest: What binds the engines.
        engines: `vision`, `embedding`, `prefill` and `decode`.
        text: The tokenizer, or None.
        folder: Where it was loaded from.
    """

    def __init__(
        self,
        manifest: VlmManifest,
        engines: Mapping[str, Engine],
        text: Text | None,
        folder: Path | None = None,
    ) -> None:
        self.manifest, self.engines, self.text, self.folder = manifest, engines, text, folder

    def generate(
        self,
        images: object,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[int] = (),
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        """The answer to one prompt.

        Args:
            images: None; pictures [I, 3, H, W] as the model takes them, or `Tiles` where they may
                have any size; or picture files, where the bundle knows their preprocessing.
            prompt: A question, or token numbers with one image token for each image.
            max_new_tokens: Most tokens of the answer.
            temperature: 0 takes the likeliest token each time, more draws.
            top_k: Draws from so many likeliest tokens.
            top_p: Draws from the likeliest tokens of that probability together.
            seed: Of the draws.
            stop: Further tokens that end the answer.
            on_token: Told each token as it comes.

        Raises:
            UsageError: Prompt and images disagree, or together with the answer are longer than the
                model's context.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        told = None if on_token is None else lambda tokens: on_token(tokens[0])
        return self.generate_batch(
            [shown(images, self.manifest)], [prompt], max_new_tokens=max_new_tokens,
            sampling=sampling, stop=stop, on_tokens=told,
        )[0]  # fmt: skip

    def generate_batch(
        self,
        images: Sequence[Shown | None],
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        stop: Sequence[int] = (),
        on_tokens: Callable[[list[int]], None] | None = None,
    ) -> list[Answer]:
        """Answers to several prompts at once.

        Each has the same number of images, and these the same number of tokens.
        """
        talk = self.begin(images, prompts, room=max_new_tokens)
        ends = {*self.manifest.stop, *stop}
        answers = [Answer([], kept=[k[i].tolist() for k in talk.kept]) for i in range(len(prompts))]
        open_ = [True] * len(prompts)
        for tokens in self.tokens(talk, max_new_tokens, sampling or Sampling()):
            for i, token in enumerate(tokens):
                if open_[i] and token in ends:
                    open_[i] = False
                elif open_[i]:
                    answers[i].tokens.append(token)
            if on_tokens is not None:
                on_tokens(tokens)
            if not any(open_):
                break
        if self.text is not None:
            for answer in answers:
                answer.text = self.text.text(answer.tokens)
        return answers

    def stream(
        self, images: object, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0,
        top_k: int | None = None, top_p: float | None = None, seed: int = 0,
    ) -> Iterator[str]:  # fmt: skip
        """The answer to one prompt in pieces of text, as they come."""
        if self.text is None:
            raise UsageError(
                "this bundle has no tokenizer", found="no tokenizer.json", fix="generate"
            )
        talk = self.begin([shown(images, self.manifest)], [prompt], room=max_new_tokens)
        tokens: list[int] = []
        said = ""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        for (token,) in self.tokens(talk, max_new_tokens, sampling):
            if token in self.manifest.stop:
                break
            tokens.append(token)
            text = self.text.text(tokens)
            # A character may take several tokens; half of one decodes to a replacement mark.
            if text.startswith(said) and not text.endswith("\ufffd"):
                yield text[len(said) :]
                said = text
        whole = self.text.text(tokens)
        if len(whole) > len(said):
            yield whole[len(said) :]

    def begin(
        self,
        images: Sequence[Shown | None],
        prompts: Sequence[Prompt],
        *,
        room: int,
        rows: Rows | None = None,
    ) -> Conversation:
        """The cache behind prompts, and the logits of their last tokens.

        Args:
            images: Pixels [I, 3, H, W] of each prompt, or tiles, or None.
            prompts: Questions or token numbers.
            room: Tokens of cache to leave free.
            rows: Which text scores image tokens, None for what the bundle was made with.
        """
        if len(images) != len(prompts):
            raise UsageError(
                "each prompt needs its images, or None",
                found=f"{len(prompts)} prompts, images for {len(images)}",
                fix="None for a prompt without a picture",
            )
        pictures = [x for x in images if x is not None]
        for picture in pictures:
            check_shown(picture, self.manifest)
        counts = [0 if x is None else len(x) for x in images]
        numbers = [
            self._numbers(prompt, count) for prompt, count in zip(prompts, counts, strict=True)
        ]
        asked: Rows = rows or self.manifest.rows  # type: ignore[assignment]
        layout = self.manifest.layout(image_tokens(pictures, self.manifest))
        batch = layout.prompts(numbers, counts, rows=asked)
        self._check_room(batch.input_ids.shape[1], room)
        (embeds,) = self.engines["embedding"](batch.input_ids)
        if counts[0] == 0:
            return self._begin_text(batch, embeds, room)
        embeds = with_images(embeds, self.features(pictures), batch.image_positions)
        return self._prefill(batch, embeds, room)

    def extend(self, talk: Conversation, tokens: Tensor, valid: Tensor | None = None) -> None:
        """Says more in a conversation.

        Args:
            talk: What was said so far; changed in place.
            tokens: [B, S] int64, shorter ones padded on the left.
            valid: [B, S], 0 for padding, None for none.

        Raises:
            UsageError: It no longer fits the model's context.
        """
        cache = talk.cache
        self._check_room(cache.filled[0], tokens.shape[1])
        valid = torch.ones_like(tokens) if valid is None else valid
        cache.make_room(tokens.shape[1])
        (embeds,) = self.engines["embedding"](tokens)
        place = cache.next_position[:, None] + (valid.cumsum(1) - 1).clamp_min(0)
        if self.manifest.grid is not None:
            place = place.expand(3, *place.shape).contiguous()
        found = talk.step(embeds, valid, place, cache.dropped, *cache.valid, *cache.layers)
        cache.append(found[1:], valid, valid.sum(1))
        # A copy: what the decoder gives may be overwritten by its next call.
        talk.logits = found[0][:, -1].to("cpu", copy=True)

    def tokens(self, talk: Conversation, most: int, sampling: Sampling) -> Iterator[list[int]]:
        """The tokens that follow, one a prompt at a time; ends after `most`."""
        draw = sampling.generator()
        for number in range(most):
            picked = sampling.pick(talk.logits, draw)
            yield picked.tolist()
            if number + 1 < most:
                self.extend(talk, picked[:, None])

    def features(self, images: Sequence[Shown]) -> Tensor:
        """Image tokens [I, N, C] of the pictures of several prompts together."""
        encoder, tiling = self.engines["vision"], self.manifest.tiling
        if tiling is not None:
            tiles = joined([one for one in images if isinstance(one, Tiles)])
            return tiling.packed(encoder(tiles.pixels)[0], tiles.sizes)
        pixels = torch.cat([one for one in images if isinstance(one, Tensor)])
        parts = [pixels] if self.manifest.any_images else list(pixels.split(1))
        return torch.cat([encoder(part)[0] for part in parts])

    def _numbers(self, prompt: Prompt, images: int) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if self.text is None:
            raise UsageError(
                "this bundle has no tokenizer", found="a prompt of text", fix="give token numbers"
            )
        return self.text.prompt(prompt, images)

    def _check_room(self, tokens: int, room: int) -> None:
        if tokens + room > self.manifest.context:
            raise UsageError(
                "prompt and answer are longer than the model's context",
                found=f"{tokens} and {room} tokens, {self.manifest.context} fit",
                fix="a shorter prompt, or a smaller max_new_tokens",
            )

    def _prefill(self, batch: Prompts, embeds: Tensor, room: int) -> Conversation:
        found = self.engines["prefill"](
            embeds, batch.attention_mask, batch.position_ids, batch.image_positions,
            batch.asking_positions, batch.asking_votes,
        )  # fmt: skip
        firsts, layers = self.manifest.first_layers, 2 * len(self.manifest.shares)
        keys, kept = found[1 : 1 + layers], list(found[1 + layers :])
        tokens, (images, number) = batch.input_ids.shape[1], batch.image_positions.shape[1:]
        lengths = self.manifest.cache_lengths(tokens, images, number)
        if [x.shape[2] for x in keys] != [n for n in lengths for _ in "kv"]:
            raise BackendError(
                "prefill gave a cache of another length than the manifest says",
                found=str([x.shape[2] for x in keys[::2]]),
                fix=f"compile again: {list(lengths)} is right",
            )
        valid = [batch.attention_mask, *(batch.attention_mask.gather(1, k) for k in kept)]
        dropped = [images * self.manifest.dropped(number)[layer] for layer in firsts]
        cache = Cache(
            firsts, keys, valid, dropped, batch.next_position, room=room, device=self._device
        )
        return Conversation(cache, found[0][:, -1], kept, in_place(self.engines["decode"]))

    @property
    def _device(self) -> torch.device:
        """Where the decoder computes, and the cache lies."""
        return getattr(self.engines["decode"], "device", torch.device("cpu"))

    def _begin_text(self, batch: Prompts, embeds: Tensor, room: int) -> Conversation:
        """Text alone goes through the decoder: there is nothing to prune.

        Raises:
            UsageError: The model reads prompts in both directions, which its decoder does not.
        """
        if self.manifest.sees == "prompt":
            raise UsageError(
                "this model answers to prompts with a picture only",
                found="a prompt of text alone, which it would read in both directions",
                fix="give a picture",
            )
        firsts = self.manifest.first_layers
        heads, width = self.manifest.cache
        size = len(batch.input_ids)
        empty = [torch.zeros(size, heads, 0, width, dtype=embeds.dtype)] * 2
        none = torch.zeros(size, 0, dtype=torch.int64)
        cache = Cache(
            firsts, empty * len(self.manifest.shares), [none] * len(firsts), [0] * len(firsts),
            torch.zeros(size, dtype=torch.int64), room=batch.input_ids.shape[1] + room,
            device=self._device,
        )  # fmt: skip
        logits = torch.zeros(size, self.manifest.vocabulary)
        talk = Conversation(cache, logits, [], in_place(self.engines["decode"]))
        self.extend(talk, batch.input_ids, batch.attention_mask)
        return talk
