"""Numbers of a vision-language model that a bundle needs, read from its config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunepass.errors import UnsupportedGraph
from prunepass.vlm.patches import Pictures, pictures_of


def deeper_layers(model: nn.Module) -> int:
    """How many layers add something of an image behind them."""
    vision = getattr(model.config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or ())


def image_token_of(model: nn.Module) -> int:
    """Number of the token that stands for image tokens.

    Raises:
        UnsupportedGraph: The config does not tell it.
    """
    token = _first(model.config, "image_token_id", "image_token_index")
    if token is None:
        raise UnsupportedGraph(
            f"the config of {type(model).__name__} lacks what a bundle needs",
            found="no image_token_id",
            fix="a model that has a token for images",
        )
    return int(token)


@dataclass(frozen=True)
class Facts:
    """Numbers of a model that a bundle needs, read from its config.

    Attributes:
        layers: Decoder layers.
        channels: C of the embeddings.
        pixels: [3, H, W] of an image, or [tiles, 3, H, W].
        image_token: Number of the token that stands for image tokens.
        padding: Number of the token that fills up prompts.
        stop: Numbers of the tokens that end an answer.
        context: Most tokens of prompt and answer. Where layers attend to a window only, its width:
            within it they attend to all.
        grid_of: (rows, columns) of an image's tokens where positions are of time, row and column.
        dtype: Of the weights.
    """

    layers: int
    channels: int
    pixels: tuple[int, ...]
    image_token: int
    padding: int
    stop: tuple[int, ...]
    context: int
    grid_of: tuple[int, int] | None
    dtype: torch.dtype


def facts(model: nn.Module, pictures: Pictures | None = None) -> Facts:
    """What the config of an image-text model says.

    Args:
        model: The model.
        pictures: What it is compiled for, None for what its config says.

    Raises:
        UnsupportedGraph: It does not name its image token or the size of its pictures.
    """
    config: Any = model.config
    text = config.get_text_config()
    pictures = pictures or pictures_of(model)
    generation: Any = getattr(model, "generation_config", None)
    stop = _first(generation, "eos_token_id") or _first(text, "eos_token_id")
    stops = stop if isinstance(stop, (list, tuple)) else [stop] if stop is not None else []
    padding = _first(text, "pad_token_id")
    return Facts(
        layers=int(text.num_hidden_layers),
        channels=int(text.hidden_size) * (1 + deeper_layers(model)),
        pixels=pictures.pixels,
        image_token=image_token_of(model),
        padding=0 if padding is None else int(padding),
        stop=tuple(int(s) for s in stops),
        context=context_of(text),
        grid_of=pictures.grid,
        dtype=next(model.parameters()).dtype,
    )


def context_of(text: Any) -> int:
    """Most tokens of a language model's config: those it is made for, within one window if any.

    Programs attend to all tokens that stand before one; up to the width of a window that is the
    same.
    """
    most = int(_first(text, "max_position_embeddings") or 1 << 20)
    kinds = {*(getattr(text, "layer_types", None) or ())}
    for kind, name in (("sliding", "sliding_window"), ("chunked", "attention_chunk_size")):
        width = getattr(text, name, None)
        if width and (not kinds or any(kind in one for one in kinds)):
            most = min(most, int(width))
    return most


def _first(config: Any, *names: str) -> Any:
    """The first of some attributes that is there."""
    for name in names:
        found = getattr(config, name, None)
        if found is not None:
            return found
    return None
