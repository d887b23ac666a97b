"""Where text and images stand in a batch of prompts, as the tensors that prefill takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunepass.errors import UsageError

Rows = Literal["text", "last"]


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left.

    Attributes:
        input_ids: [B, T] int64, the image token in every place of an image token.
        attention_mask: [B, T] int64, 0 for padding.
        position_ids: [B, T] or [3, B, T] int64.
        image_positions: [B, I, N] int64, ascending; I = 0 for text alone.
        asking_positions: [B, R] int64, rows whose attention may score image tokens.
        asking_votes: [B, R] float32, 1 for those that count.
        next_position: [B] int64, the position of the first token that is generated.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    image_positions: Tensor
    asking_positions: Tensor
    asking_votes: Tensor
    next_position: Tensor


def with_images(embeds: Tensor, features: Tensor, positions: Tensor) -> Tensor:
    """Embeddings [B, T, C] with features [B I, N, C] of images at positions [B, I, N]."""
    index = positions.reshape(len(embeds), -1, 1).expand(-1, -1, embeds.shape[2])
    return embeds.scatter(1, index, features.reshape(index.shape).to(embeds.dtype))


@dataclass(frozen=True)
class Layout:
    """How a model's prompts are laid out.

    Attributes:
        image_token: Number of the token that stands for image tokens.
        image_tokens: N, how many of them one image has.
        padding: Number of the token that fills up shorter prompts.
        grid: (rows, columns) of an image's tokens where positions are of time, row and column;
            None where they are plain numbers.
    """

    image_token: int
    image_tokens: int
    padding: int = 0
    grid: tuple[int, int] | None = None

    def expanded(self, tokens: Sequence[int], images: int) -> list[int]:
        """The prompt with N image tokens for each image.

        A prompt may mark each image by one image token, or have all of them already.

        Raises:
            UsageError: Marks and images disagree in number.
        """
        marks = sum(token == self.image_token for token in tokens)
        if marks == images * self.image_tokens:
            return list(tokens)
        if marks != images:
            raise UsageError(
                "prompt and images disagree",
                found=f"{marks} image tokens in the prompt, {images} images",
                fix="one image token in the prompt for each image",
            )
        found: list[int] = []
        for token in tokens:
            found += [token] * (self.image_tokens if token == self.image_token else 1)
        return found

    def prompts(
        self, batch: Sequence[Sequence[int]], images: Sequence[int], *, rows: Rows = "text"
    ) -> Prompts:
        """A batch of prompts, each with its number of images.

        Args:
            batch: Token numbers of each prompt.
            images: How many images each has; the same for all.
            rows: Which text may score image tokens: all behind the last image, or the last token.
                Where an image stands last, its last token does.

        Raises:
            UsageError: A prompt is empty, prompt and images disagree, or the numbers of images
                differ.
        """
        if len(set(images)) > 1:
            raise UsageError(
                "prompts of one batch must have the same number of images",
                found=", ".join(map(str, images)),
                fix="one batch for each number of images",
            )
        whole = [self.expanded(p, n) for p, n in zip(batch, images, strict=True)]
        if not whole or not all(whole):
            raise UsageError("a prompt has no token", found="an empty prompt", fix="say something")
        length = max(map(len, whole))
        pad = [length - len(p) for p in whole]
        ids = torch.tensor([[self.padding] * n + p for n, p in zip(pad, whole, strict=True)])
        valid = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, whole, strict=True)])
        places = [[i for i, t in enumerate(p) if t == self.image_token] for p in whole]
        stand = [[i + n for i in p] for n, p in zip(pad, places, strict=True)]
        asking = [
            list(range(s[-1] + 1 if s and rows == "text" else length - 1, length)) or [length - 1]
            for s in stand
        ]
        most = max(map(len, asking))
        position, following = self._positions(whole, pad, length)
        return Prompts(
            input_ids=ids,
            attention_mask=valid,
            position_ids=position,
            image_positions=torch.tensor(stand).reshape(len(whole), images[0], -1)
            if images[0]
            else torch.zeros(len(whole), 0, self.image_tokens, dtype=torch.int64),
            asking_positions=torch.arange(length - most, length).expand(len(whole), -1),
            asking_votes=torch.tensor([[0.0] * (most - len(a)) + [1.0] * len(a) for a in asking]),
            next_position=following,
        )

    def _positions(
        self, whole: Sequence[Sequence[int]], pad: Sequence[int], length: int
    ) -> tuple[Tensor, Tensor]:
        rows = 1 if self.grid is None else 3
        position = torch.zeros(rows, len(whole), length, dtype=torch.int64)
        following = []
        for i, (prompt, shift) in enumerate(zip(whole, pad, strict=True)):
            if self.grid is None:
                position[0, i, shift:] = torch.arange(len(prompt))
                following.append(len(prompt))
                continue
            at, place = 0, 0
            height, width = self.grid
            while at < len(prompt):
                if prompt[at] != self.image_token:
                    position[:, i, shift + at] = place
                    at, place = at + 1, place + 1
                    continue
                cells = torch.arange(height * width)
                span = slice(shift + at, shift + at + height * width)
                position[0, i, span] = place
                position[1, i, span] = place + cells // width
                position[2, i, span] = place + cells % width
                at, place = at + height * width, place + max(height, width)
            following.append(place)
        found = position if rows == 3 else position[0]
        return found, torch.tensor(following)
