"""Answers of a compiled vision-language model: prefill once, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prunepass.backends.protocol import Engine
from prunepass.errors import BackendError, UsageError
from prunepass.vlm.cache import Cache
from prunepass.vlm.layout import Prompts, Rows, with_images
from prunepass.vlm.manifest import VlmManifest
from prunepass.vlm.sampling import Sampling
from prunepass.vlm.text import Text

Prompt = str | Sequence[int]


@dataclass
class Answer:
    """What was said to one prompt.

    Attributes:
        tokens: Their numbers, without the token that ended it.
        text: None where the bundle has no tokenizer.
        kept: For each stage behind a pruning, where the tokens that stayed stood in the prompt.
    """

    tokens: list[int]
    text: str | None = None
    kept: list[list[int]] = field(default_factory=list)


@dataclass
class Conversation:
    """A cache with what was said so far.

    Attributes:
        cache: Of one batch of prompts.
        logits: [B, V] behind the last token.
        kept: [B, T'] for each stage behind a pruning, positions in the prompt.
    """

    cache: Cache
    logits: Tensor
    kept: list[Tensor]


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
            images: None; pictures [I, 3, H, W] as the model takes them; or picture files, where
                the bundle knows their preprocessing.
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
        pixels = self.pixels(images)
        return self.generate_batch(
            [pixels], [prompt], max_new_tokens=max_new_tokens, sampling=sampling, stop=stop,
            on_tokens=told,
        )[0]  # fmt: skip

    def generate_batch(
        self,
        images: Sequence[Tensor | None],
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        stop: Sequence[int] = (),
        on_tokens: Callable[[list[int]], None] | None = None,
    ) -> list[Answer]:
        """Answers to several prompts at once, each with the same number of images."""
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
        talk = self.begin([self.pixels(images)], [prompt], room=max_new_tokens)
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
        images: Sequence[Tensor | None],
        prompts: Sequence[Prompt],
        *,
        room: int,
        rows: Rows | None = None,
    ) -> Conversation:
        """The cache behind prompts, and the logits of their last tokens.

        Args:
            images: Pixels [I, 3, H, W] of each prompt, or None.
            prompts: Questions or token numbers.
            room: Tokens of cache to leave free.
            rows: Which text scores image tokens, None for what the bundle was made with.
        """
        if len(images) != len(prompts):
            raise UsageError(
                "each prompt needs its images, or None",
                found=f"{len(prompts)} prompts, images for {len(images)}",
            )
        counts = [0 if x is None else len(x) for x in images]
        numbers = [
            self._numbers(prompt, count) for prompt, count in zip(prompts, counts, strict=True)
        ]
        asked: Rows = rows or self.manifest.rows  # type: ignore[assignment]
        batch = self.manifest.layout.prompts(numbers, counts, rows=asked)
        self._check_room(batch.input_ids.shape[1], room)
        (embeds,) = self.engines["embedding"](batch.input_ids)
        if counts[0] == 0:
            return self._begin_text(batch, embeds, room)
        features = self.features(torch.cat([x for x in images if x is not None]))
        embeds = with_images(embeds, features, batch.image_positions)
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
        found = self.engines["decode"](
            embeds, valid, place, cache.dropped, *cache.valid, *cache.layers
        )
        cache.append(found[1:], valid, valid.sum(1))
        talk.logits = found[0][:, -1]

    def tokens(self, talk: Conversation, most: int, sampling: Sampling) -> Iterator[list[int]]:
        """The tokens that follow, one a prompt at a time; ends after `most`."""
        draw = sampling.generator()
        for number in range(most):
            picked = sampling.pick(talk.logits, draw)
            yield picked.tolist()
            if number + 1 < most:
                self.extend(talk, picked[:, None])

    def features(self, pixels: Tensor) -> Tensor:
        """Image tokens [I, N, C] of pixels [I, 3, H, W]."""
        parts = [pixels] if self.manifest.any_images else list(pixels.split(1))
        return torch.cat([self.engines["vision"](part)[0] for part in parts])

    def pixels(self, images: object) -> Tensor | None:
        """Images [I, 3, H, W] as the encoder takes them, None for none.

        Raises:
            UsageError: They are of another size, or are files and the bundle does not know how a
                picture becomes an input.
        """
        if images is None:
            return None
        if isinstance(images, Tensor):
            found = images if images.dim() > len(self.manifest.pixels) else images[None]
            if tuple(found.shape[1:]) != tuple(self.manifest.pixels):
                raise UsageError(
                    "pixels of another size than the model takes",
                    found=str(list(images.shape)),
                    fix=f"[images, {', '.join(map(str, self.manifest.pixels))}]",
                )
            return found
        if self.manifest.preprocessing is None:
            raise UsageError(
                "this bundle does not know how a picture becomes an input",
                found="no preprocessing in its manifest",
                fix="give pixels as a tensor, or compile with a processor",
            )
        from prunepass.sources.pictures import read_picture
        from prunepass.sources.preprocess import Preprocessing

        preprocessing = Preprocessing.from_dict(self.manifest.preprocessing)
        files = [images] if isinstance(images, (str, Path)) else list(images)  # type: ignore[call-overload]
        return torch.stack([read_picture(Path(file), preprocessing) for file in files])

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
        firsts, layers = self.manifest.first_layers, 2 * len(self.manifest.dropped)
        keys, kept = found[1 : 1 + layers], list(found[1 + layers :])
        tokens, images = batch.input_ids.shape[1], batch.image_positions.shape[1]
        lengths = self.manifest.cache_lengths(tokens, images)
        if [x.shape[2] for x in keys] != [n for n in lengths for _ in "kv"]:
            raise BackendError(
                "prefill gave a cache of another length than the manifest says",
                found=str([x.shape[2] for x in keys[::2]]),
                fix=f"compile again: {list(lengths)} is right",
            )
        valid = [batch.attention_mask, *(batch.attention_mask.gather(1, k) for k in kept)]
        dropped = [images * self.manifest.dropped[layer] for layer in firsts]
        cache = Cache(firsts, keys, valid, dropped, batch.next_position, room=room)
        return Conversation(cache, found[0][:, -1], kept)

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
            firsts, empty * len(self.manifest.dropped), [none] * len(firsts), [0] * len(firsts),
            torch.zeros(size, dtype=torch.int64), room=batch.input_ids.shape[1] + room,
        )  # fmt: skip
        talk = Conversation(cache, torch.zeros(size, self.manifest.vocabulary), [])
        self.extend(talk, batch.input_ids, batch.attention_mask)
        return talk
