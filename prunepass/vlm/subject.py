"""A vision-language model that is to be compiled: taken apart, and known in what it does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prunepass.errors import UsageError
from prunepass.stages import Clock
from prunepass.vlm.encoder import Encoder, captured_encoder
from prunepass.vlm.facts import Facts, facts
from prunepass.vlm.patches import ImageSize, Pictures, pictures_of
from prunepass.vlm.split import Parts, Sees, split
from prunepass.vlm.verify import Example, example_of, what_tokens_see


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model taken apart, nothing rewritten.

    Attributes:
        model: The model.
        pictures: What it is compiled for.
        known: What its config says.
        parts: Its parts, the language model as `sees` has it.
        sees: What a token of a prompt attends to.
        encoder: Its own, captured.
        example: A prompt with a picture, and what the model says to it.
    """

    model: nn.Module
    pictures: Pictures
    known: Facts
    parts: Parts
    sees: Sees
    encoder: Encoder
    example: Example

    @property
    def position_rows(self) -> int:
        """3 where positions are of time, row and column, else 1."""
        return 1 if self.known.grid_of is None else 3

    @property
    def tiles(self) -> int:
        """Pictures that the encoder takes for one."""
        return len(self.pictures.encoder_inputs(self.pictures.examples(self.known.dtype)[:1]))


def subject_of(model: nn.Module, image_size: ImageSize | None, *, clock: Clock) -> Subject:
    """A model taken apart, and tried out.

    Args:
        model: An image-text-to-text model of transformers, in eval mode.
        image_size: Of the pictures, None for what its config says.
        clock: Told of the stages `capture` and `compare`.

    Raises:
        CaptureError: Its encoder cannot be captured.
        UnsupportedGraph: It lacks a part, or does more than its parts do.
        UsageError: It is in training mode, or takes no pictures of this size.
    """
    if any(module.training for module in model.modules()):
        raise UsageError(
            "cannot compile a model in training mode", found="model.training is True", fix="eval()"
        )
    pictures = pictures_of(model, image_size)
    parts, known = split(model, pictures), facts(model, pictures)
    with clock("capture"):
        encoder = captured_encoder(parts.vision, pictures, dtype=known.dtype)
    with clock("compare"):
        example = example_of(model, pictures, known, image_tokens=encoder.image_tokens)
        sees = what_tokens_see(model, pictures, example)
        parts = split(model, pictures, sees=sees)
    return Subject(
        model=model, pictures=pictures, known=known, parts=parts, sees=sees, encoder=encoder,
        example=example,
    )  # fmt: skip
