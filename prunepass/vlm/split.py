"""A vision-language model taken apart into what is exported: encoder, embedding, language model.

The parts are found by the names that transformers gives them in all of its image-text models; no
class is patched and no model is named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.errors import UnsupportedGraph


@dataclass(frozen=True)
class Parts:
    """The parts of a model, each a module of tensors only.

    Attributes:
        vision: Pixels to image tokens as the language model takes them: [I, N, C].
        embedding: Token numbers [B, T] to embeddings [B, T, C].
        language: See `LanguageModel`.
    """

    vision: nn.Module
    embedding: nn.Module
    language: nn.Module


class Vision(nn.Module):
    """Images to image tokens [I, N, C], projector included; I images of N tokens each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[I, N, C] of pixels [I, 3, H, W]."""
        found: Any = self.model.get_image_features(pixel_values=pixel_values)  # type: ignore[operator]
        features = getattr(found, "pooler_output", found)
        if isinstance(features, (tuple, list)):
            features = torch.stack(tuple(features))
        assert isinstance(features, Tensor)
        return features.reshape(pixel_values.shape[0], -1, features.shape[-1])


class LanguageModel(nn.Module):
    """Prefill: a prompt as embeddings to the logits of its last token and all keys and values.

    Prompts of a batch are padded on the left. The inputs that tell of images are for passes; the
    program as captured does not read them.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_positions: Tensor,
        asking_positions: Tensor,
        asking_votes: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits [B, 1, V], then keys and values [B, G, T, D] of each layer in turn.

        Args:
            inputs_embeds: [B, T, C], image tokens in their places.
            attention_mask: [B, T] int64, 0 for padding.
            position_ids: [B, T], or [3, B, T] where positions are of time, row and column.
            image_positions: [B, I, N] int64, where the tokens of each image stand, ascending.
            asking_positions: [B, R] int64, text tokens whose attention may score image tokens.
            asking_votes: [B, R] float, how much each of them counts, >= 0, some > 0.
        """
        length = inputs_embeds.shape[1]
        square = torch.ones(length, length, dtype=torch.bool, device=inputs_embeds.device)
        itself = torch.eye(length, dtype=torch.bool, device=inputs_embeds.device)
        # Padding sees itself: a row that sees nothing would come out as NaN.
        mask = (square.tril() & attention_mask[:, None, None, :].to(torch.bool)) | itself
        cache = _Recorder()
        found = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        logits = self.head(found.last_hidden_state[:, -1:])
        layers = [cache.layers[i] for i in sorted(cache.layers)]
        return (logits, *(x for layer in layers for x in layer))


class _Recorder:
    """Stands where a cache would: notes keys and values and hands them back."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.layers[layer] = (key, value)
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        return 0


def split(model: nn.Module) -> Parts:
    """The parts of an image-text model of transformers, weights shared with it.

    Raises:
        UnsupportedGraph: The model lacks one of the parts.
    """
    inner = getattr(model, "model", model)
    language = getattr(inner, "language_model", None) or getattr(inner, "text_model", None)
    head = getattr(model, "lm_head", None)
    found = {
        "get_image_features": getattr(inner, "get_image_features", None),
        "language_model": language,
        "lm_head": head,
    }
    missing = [name for name, part in found.items() if part is None]
    if missing:
        raise UnsupportedGraph(
            f"{type(model).__name__} is no vision-language model that can be taken apart",
            found=f"it has no {', '.join(missing)}",
            fix="an image-text-to-text model of transformers, with its head",
        )
    assert isinstance(language, nn.Module)
    assert isinstance(head, nn.Module)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return Parts(Vision(inner), embedding, LanguageModel(language, head))


@dataclass(frozen=True)
class Facts:
    """Numbers of a model that a bundle needs, read from its config.

    Attributes:
        layers: Decoder layers.
        channels: C of the embeddings.
        pixels: [3, H, W] of an image.
        image_token: Number of the token that stands for image tokens.
        padding: Number of the token that fills up prompts.
        stop: Numbers of the tokens that end an answer.
        context: Most tokens of prompt and answer.
        grid_of: (rows, columns) of an image's tokens where positions are of time, row and column.
        dtype: Of the weights.
    """

    layers: int
    channels: int
    pixels: tuple[int, int, int]
    image_token: int
    padding: int
    stop: tuple[int, ...]
    context: int
    grid_of: tuple[int, int] | None
    dtype: torch.dtype


def facts(model: nn.Module) -> Facts:
    """What the config of an image-text model says.

    Raises:
        UnsupportedGraph: It does not name its image token or the size of its pictures.
    """
    config: Any = model.config
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    token = _first(config, "image_token_id", "image_token_index")
    size = _first(vision, "image_size")
    if token is None or size is None:
        raise UnsupportedGraph(
            f"the config of {type(model).__name__} lacks what a bundle needs",
            found="no " + ("image_token_id" if token is None else "vision_config.image_size"),
            fix="a model whose pictures have one size",
        )
    height, width = (size, size) if isinstance(size, int) else size
    generation: Any = getattr(model, "generation_config", None)
    stop = _first(generation, "eos_token_id") or _first(text, "eos_token_id")
    stops = stop if isinstance(stop, (list, tuple)) else [stop] if stop is not None else []
    padding = _first(text, "pad_token_id")
    return Facts(
        layers=int(text.num_hidden_layers),
        channels=int(text.hidden_size),
        pixels=(3, int(height), int(width)),
        image_token=int(token),
        padding=0 if padding is None else int(padding),
        stop=tuple(int(s) for s in stops),
        context=int(_first(text, "max_position_embeddings") or 1 << 20),
        grid_of=None,
        dtype=next(model.parameters()).dtype,
    )


def _first(config: Any, *names: str) -> Any:
    """The first of some attributes that is there."""
    for name in names:
        found = getattr(config, name, None)
        if found is not None:
            return found
    return None
