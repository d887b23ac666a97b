"""Answers of a compiled language model: the prompt at once, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunepass.backends.protocol import Engine
from prunepass.backends.table import backend as find_backend
from prunepass.bundle_files import check_digests
from prunepass.errors import ModelError, UsageError
from prunepass.language.manifest import ENGINES, LanguageManifest, read_language_manifest
from prunepass.vlm.cache import Cache
from prunepass.vlm.sampling import Sampling
from prunepass.vlm.text import Text, read_text

Prompt = str | Sequence[int]


@dataclass
class Talk:
    """A cache with what was said so far, and logits [B, V] behind the last token."""

    cache: Cache
    logits: Tensor


class LanguageBundle:
    """A compiled language model, ready to answer.

    Args:
        manifest: What binds the engines.
        engines: `dense` and `compressed`, or one of them.
        text: The tokenizer, or None.
        folder: Where it was loaded from.
    """

    def __init__(
        self,
        manifest: LanguageManifest,
        engines: Mapping[str, Engine],
        text: Text | None,
        folder: Path | None = None,
    ) -> None:
        self.manifest, self.engines, self.text, self.folder = manifest, engines, text, folder

    @property
    def device(self) -> torch.device:
        """Where the engines compute: there the cache lies."""
        return getattr(next(iter(self.engines.values())), "device", torch.device("cpu"))

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        part: str = "compressed",
        on_token: Callable[[int], None] | None = None,
    ) -> list[int]:
        """The tokens that follow a prompt, without the one that ends the answer.

        Args:
            prompt: Text, or token numbers.
            max_new_tokens: Most tokens of the answer.
            temperature: 0 takes the likeliest token each time, more draws.
            top_k: Draws from so many likeliest tokens.
            top_p: Draws from the likeliest tokens of that probability together.
            seed: Of the draws.
            part: Which engine answers.
            on_token: Told each token as it comes.

        Raises:
            UsageError: The prompt is empty, holds unknown tokens, or is together with the answer
                longer than the model's context.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        numbers = self.numbers(prompt)
        talk = self.begin([numbers], room=max_new_tokens, part=part)
        found: list[int] = []
        for (token,) in self.tokens(talk, max_new_tokens, sampling, part=part):
            if token in self.manifest.stop:
                break
            found.append(token)
            if on_token is not None:
                on_token(token)
        return found

    def begin(
        self, prompts: Sequence[Sequence[int]], *, room: int, part: str = "compressed"
    ) -> Talk:
        """The cache behind prompts, and the logits of their last tokens.

        Args:
            prompts: Token numbers of each; shorter ones are padded on the left.
            room: Tokens of cache to leave free.
            part: Which engine runs.

        Raises:
            UsageError: A prompt is empty, too long, or holds unknown tokens.
        """
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise UsageError("a prompt has no token", found="an empty prompt", fix="say something")
        length, size = max(map(len, prompts)), len(prompts)
        self._check(prompts, length + room)
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts])
        valid = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        heads, width = self.manifest.cache
        dtype = getattr(torch, self.manifest.dtype)
        empty = [torch.zeros(size, heads, 0, width, dtype=dtype)] * (2 * self.manifest.layers)
        none = torch.zeros(size, 0, dtype=torch.int64)
        start = torch.zeros(size, dtype=torch.int64)
        # While the prompt runs the cache is one entry that holds nothing: it attends to itself.
        cache = Cache((0,), empty, [none], [0], start, room=1, device=self.device)
        talk = Talk(cache, torch.zeros(size, self.manifest.vocabulary))
        self.extend(talk, ids, valid, part=part, room=room)
        return talk

    def extend(
        self, talk: Talk, tokens: Tensor, valid: Tensor | None = None, *, part: str = "compressed",
        room: int = 0,
    ) -> None:  # fmt: skip
        """Says more.

        Args:
            talk: What was said so far; changed in place.
            tokens: [B, S] int64, shorter ones padded on the left.
            valid: [B, S], 0 for padding, None for none.
            part: Which engine runs.
            room: Tokens of cache to leave free behind these.
        """
        cache = talk.cache
        valid = torch.ones_like(tokens) if valid is None else valid
        place = cache.next_position[:, None] + (valid.cumsum(1) - 1).clamp_min(0)
        found = self.engines[part](tokens, valid, place, cache.dropped, *cache.valid, *cache.layers)
        cache.make_room(tokens.shape[1] + room)
        cache.append(found[1:], valid, valid.sum(1))
        talk.logits = found[0][:, -1].float().cpu()

    def tokens(
        self, talk: Talk, most: int, sampling: Sampling, *, part: str = "compressed"
    ) -> Iterator[list[int]]:
        """The tokens that follow, one a prompt at a time; ends after `most`."""
        draw = sampling.generator()
        for number in range(most):
            picked = sampling.pick(talk.logits, draw)
            yield picked.tolist()
            if number + 1 < most:
                self.extend(talk, picked[:, None], part=part)

    def numbers(self, prompt: Prompt) -> list[int]:
        """Token numbers of a prompt.

        Raises:
            UsageError: It is text and the bundle has no tokenizer.
        """
        if not isinstance(prompt, str):
            return list(prompt)
        if self.text is None:
            raise UsageError(
                "this bundle has no tokenizer", found="a prompt of text",
                fix="give token numbers (--tokens 1,2,3)",
            )  # fmt: skip
        return self.text.prompt(prompt, 0)

    def _check(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        if tokens > self.manifest.context:
            raise UsageError(
                "prompt and answer are longer than the model's context",
                found=f"{tokens} tokens, {self.manifest.context} fit",
                fix="a shorter prompt, or a smaller max_new_tokens",
            )
        unknown = [t for p in prompts for t in p if not 0 <= t < self.manifest.vocabulary]
        if unknown:
            raise UsageError(
                "a prompt holds tokens that the model does not know",
                found=f"token {unknown[0]}",
                fix=f"numbers from 0 to {self.manifest.vocabulary - 1}",
            )


def load(
    folder: str | Path, *, threads: int | None = None, parts: Sequence[str] = ("compressed",)
) -> LanguageBundle:
    """The bundle of a language model; needs neither the model's source nor transformers.

    Args:
        folder: What `compile` wrote.
        threads: Threads of an engine, None for one a core.
        parts: Engines to load; each holds all weights.

    Raises:
        ModelError: The folder is no such bundle, an engine is missing, or a file was changed.
        BackendError: An engine cannot be loaded.
    """
    place = Path(folder)
    manifest = read_language_manifest(place)
    settings = {"threads": threads} if threads and manifest.backend == "onnx" else {}
    if threads and not settings:
        torch.set_num_threads(threads)
    chosen = find_backend(manifest.backend, **settings)
    missing = [name for name in ENGINES if not (place / name).is_dir()]
    if missing:
        raise ModelError(
            f"{place} lacks an engine", found=f"no folder {', '.join(missing)}", fix="compile again"
        )
    check_digests(place)
    engines = {name: chosen.load(place / name) for name in parts}
    return LanguageBundle(
        manifest, engines, read_text(place, template=None, image_mark=None), place
    )
