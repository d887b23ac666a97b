"""The encoder of a bundle: the model's own, or one that makes fewer tokens of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.errors import PlanError
from prunepass.passes.select_image_features import select_image_features
from prunepass.planners.image_methods import DOWNSAMPLE, picture_share
from prunepass.plans import Plain, Step
from prunepass.vlm.downsample import downsampled
from prunepass.vlm.patches import Pictures
from prunepass.vlm.programs import capture_vision
from prunepass.vlm.split import split
from prunepass.vlm.tiles import Size


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder with its projector, captured.

    Attributes:
        program: Pictures to image tokens.
        any_images: Whether it takes several pictures at once.
        image_tokens: N, that it makes of a picture.
        grid: (rows, columns) of these where positions are of time, row and column.
    """

    program: ExportedProgram
    any_images: bool
    image_tokens: int
    grid: Size | None


def captured_encoder(vision: nn.Module, pictures: Pictures, *, dtype: torch.dtype) -> Encoder:
    """The encoder that a module is.

    Args:
        vision: A `Vision` or `TiledVision`.
        pictures: What it takes.
        dtype: Of its weights.
    """
    examples = pictures.examples(dtype)
    program, any_images = capture_vision(
        vision, pictures.encoder_inputs(examples[:1] if pictures.tiling else examples),
        alone=pictures.alone and pictures.tiling is None,
    )  # fmt: skip
    return Encoder(
        program=program,
        any_images=any_images,
        image_tokens=_image_tokens(program, pictures),
        grid=pictures.grid,
    )


def in_front(steps: Sequence[Step]) -> bool:
    """Whether steps take tokens out of what the encoder gives, not inside the language model."""
    return bool(steps) and steps[0].kind == "select_image_features"


def encoder_of(
    model: nn.Module,
    pictures: Pictures,
    own: Encoder,
    *,
    method: str,
    steps: Sequence[Step],
    keep: Sequence[float] | str | None,
    options: Mapping[str, Plain] | None,
) -> Encoder:
    """The encoder that a method asks for; `own` itself where it leaves that alone.

    Args:
        model: An image-text-to-text model of transformers.
        pictures: What it takes.
        own: Its encoder.
        method: Name of the method.
        steps: What the method planned.
        keep: Share of the image tokens that stays, where pictures become smaller.
        options: Further options, of which smaller pictures have none.

    Raises:
        PlanError: An option is given that there is none of, or the tokens of these pictures cannot
            be taken out in front of the language model.
        UnsupportedGraph: The encoder takes no smaller picture.
    """
    if method == DOWNSAMPLE:
        smaller = downsampled(
            model, pictures, image_tokens=own.image_tokens, share=picture_share(keep),
            options=options,
        )  # fmt: skip
        dtype = next(model.parameters()).dtype
        return captured_encoder(split(model, smaller).vision, smaller, dtype=dtype)
    if not in_front(steps):
        return own
    _check_in_front(own, pictures, method)
    program, _ = select_image_features(own.program, steps)
    return replace(own, program=program, image_tokens=_image_tokens(program, pictures))


def _image_tokens(vision: ExportedProgram, pictures: Pictures) -> int:
    """How many tokens an encoder makes of a picture."""
    if pictures.tiling is not None:
        assert pictures.size is not None
        return pictures.tiling.tokens(pictures.size)
    output = next(n for n in vision.graph.nodes if n.op == "output")
    features: Tensor = output.args[0][0].meta["val"]
    return int(features.shape[1])


def _check_in_front(own: Encoder, pictures: Pictures, method: str) -> None:
    """Refuses to take tokens out of what an encoder gives where their places are lost with them."""
    if own.grid is not None:
        raise PlanError(
            f"{method} takes tokens out in front of a model whose positions are rows and columns",
            found="the tokens that stay would lose their places",
            fix="transprune, fastv or another that prunes inside the language model",
        )
    if pictures.tiling is not None:
        raise PlanError(
            f"{method} takes tokens out of a picture whose size is known",
            found="pictures of any size",
            fix="image_size=(height, width), or a method that prunes inside the language model",
        )
