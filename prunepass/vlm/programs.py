"""The parts of a vision-language model as programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunepass.analyse.sequence import hoist_in_layers
from prunepass.analyse.sites import label_sites
from prunepass.errors import CaptureError, first_line
from prunepass.graph.writes import fold_convolutions, fold_writes

LONGEST = 1 << 20
"""Tokens of the longest prompt."""


def capture_language(
    language: nn.Module,
    *,
    channels: int,
    image_tokens: int,
    position_rows: int = 1,
    any_image_tokens: bool = False,
    dtype: torch.dtype = torch.float32,
) -> ExportedProgram:
    """A language model's prefill as a labelled program of dynamic batch and length.

    Args:
        language: A `LanguageModel`.
        channels: C of its embeddings.
        image_tokens: N, the tokens of one image.
        position_rows: 3 where positions are of time, row and column, else 1.
        any_image_tokens: Whether the program takes any number of tokens an image.
        dtype: Of its weights.
    """
    text = 11
    length = 2 * image_tokens + text
    position = torch.arange(length).expand(2, length)
    if position_rows > 1:
        position = position.expand(position_rows, 2, length)
    start = torch.arange(3, 3 + 2 * image_tokens).reshape(1, 2, -1)
    rows = 5
    inputs = (
        torch.randn(2, length, channels, generator=torch.Generator().manual_seed(0)).to(dtype),
        torch.ones(2, length, dtype=torch.int64),
        position.contiguous(),
        start.expand(2, 2, -1).contiguous(),
        torch.arange(length - rows, length).expand(2, rows).contiguous(),
        torch.ones(2, rows),
    )
    batch, tokens = Dim("batch", min=1), Dim("tokens", min=1, max=LONGEST)
    asking, images, image = Dim("asking", min=1), Dim("images", min=1), Dim("image", min=2)
    along = {0: batch, 1: tokens}
    shapes: tuple[dict[int, Any], ...] = (
        along, along, along if position_rows == 1 else {1: batch, 2: tokens},
        {0: batch, 1: images, 2: image} if any_image_tokens else {0: batch, 1: images},
        {0: batch, 1: asking}, {0: batch, 1: asking},
    )  # fmt: skip
    return _capture(language, inputs, shapes, "language model", followed=True)


def capture_embedding(embedding: nn.Module) -> ExportedProgram:
    """Token numbers [B, T] to embeddings [B, T, C], as a program of dynamic batch and length."""
    along = {0: Dim("batch", min=1), 1: Dim("tokens", min=1, max=LONGEST)}
    numbers = torch.zeros(2, 3, dtype=torch.int64)
    return _capture(_Embedding(embedding), (numbers,), (along,), "embedding")


def capture_vision(
    vision: nn.Module, pixels: Tensor, *, alone: bool = False
) -> tuple[ExportedProgram, bool]:
    """Pixels [I, 3, H, W] to image tokens [I, N, C], and whether it takes any number of images.

    Some models hand out their features as a list of images, which fixes their number: those
    become programs of one image.

    Args:
        vision: A `Vision`.
        pixels: [2, 3, H, W], example images.
        alone: Whether to capture it for one image from the start.
    """
    if alone:
        program = _capture(vision, (pixels[:1],), None, "vision encoder")
        fold_convolutions(program)
        return program, False
    try:
        shapes = ({0: Dim("images", min=1)},)
        return _capture(vision, (pixels,), shapes, "vision encoder"), True
    except CaptureError:
        return _capture(vision, (pixels[:1],), None, "vision encoder"), False


class _Embedding(nn.Module):
    """An embedding whose input is named for what it is."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.embedding(input_ids)
        assert isinstance(found, Tensor)
        return found


def _capture(
    module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, what: str, *, followed: bool = False
) -> ExportedProgram:
    """A labelled program; `followed` where passes follow values through all of it."""
    try:
        with torch.no_grad():
            program = torch.export.export(
                module.eval(), inputs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise CaptureError(
            f"torch.export could not capture the {what}",
            found=f"{type(error).__name__}: {first_line(error)}",
            fix="check that it exports by itself",
        ) from error
    if not followed:
        return label_sites(program)
    fold_writes(program, what)
    program = label_sites(program)
    hoist_in_layers(program)
    return program
