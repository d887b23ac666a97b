"""A vision-language model taken apart into what is exported: encoder, embedding, language model.

The parts are found by the names that transformers gives them in all of its image-text models; no
class is patched and no model is named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunepass.errors import UnsupportedGraph
from prunepass.vlm.facts import deeper_layers, image_token_of
from prunepass.vlm.patches import Pictures, pictures_of

Sees = Literal["causal", "image", "prompt"]
"""What a token of a prompt attends to: what stands before it; and all of its own image; or the
whole prompt."""


@dataclass(frozen=True)
class Parts:
    """The parts of a model, each a module of tensors only.

    Attributes:
        vision: Pixels to image tokens as the language model takes them: [I, N, C]; of images of
            any size the tokens of their tiles, see `TiledVision`.
        embedding: Token numbers [B, T] to embeddings [B, T, C].
        language: See `LanguageModel`.
    """

    vision: nn.Module
    embedding: nn.Module
    language: nn.Module


class Vision(nn.Module):
    """Images to image tokens [I, N, C], projector included; I images of N tokens each.

    Where the model adds more of an image behind its first layers (DeepStack), that follows along
    the channels: [I, N, C + L C].
    """

    def __init__(self, model: nn.Module, pictures: Pictures) -> None:
        super().__init__()
        self.model, self.pictures = model, pictures
        self.numbers = dict(pictures.known or {})
        for name in [n for n, number in self.numbers.items() if isinstance(number, Tensor)]:
            self.register_buffer(f"known_{name}", self.numbers.pop(name), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[I, N, C] of pixels [I, 3, H, W], or of tiles [I, tiles, 3, H, W]."""
        model: Any = self.model
        if self.pictures.leaves_out:
            features = model.connector(model.vision_model(pixel_values).last_hidden_state)
        else:
            known = {n.removeprefix("known_"): x for n, x in self.named_buffers(recurse=False)}
            given = {**self.pictures.inputs(pixel_values), **known, **self.numbers}
            found = model.get_image_features(**given)
            features = _as_tensor(getattr(found, "pooler_output", found))
            deeper = getattr(found, "deepstack_features", None) or ()
            features = torch.cat([features, *map(_as_tensor, deeper)], dim=-1)
        return features.reshape(pixel_values.shape[0], -1, features.shape[-1])


class TiledVision(nn.Module):
    """Tiles of images to their tokens [K, P P + 1, C], projector included.

    Behind the tokens of each tile stands the one that ends a row of an image.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[K, P P + 1, C] of tiles [K, 3, S, S]."""
        model: Any = self.model
        config = model.config
        states = model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        layer = config.vision_feature_layer
        chosen = [states[i] for i in ([layer] if isinstance(layer, int) else layer)]
        if config.vision_feature_select_strategy == "default":  # without the class token
            chosen = [state[:, 1:] for state in chosen]
        features = model.multi_modal_projector(torch.cat(chosen, dim=-1))
        newline = model.image_newline.to(features.dtype).expand(features.shape[0], 1, -1)
        return torch.cat([features, newline], dim=1)


class Embedding(nn.Module):
    """Token numbers [B, T] to embeddings [B, T, C + L C], zeros where images have more.

    Args:
        table: The model's own embedding.
        image_token: A number that it may lack; what stands there is replaced anyway.
        deeper: L, see `Vision`.
    """

    def __init__(self, table: nn.Module, image_token: int, deeper: int = 0) -> None:
        super().__init__()
        self.table, self.deeper = table, deeper
        rows = int(getattr(table, "num_embeddings", image_token + 1))
        self.lacking = image_token if image_token >= rows else None

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.lacking is not None:
            input_ids = input_ids.masked_fill(input_ids == self.lacking, 0)
        found = self.table(input_ids)
        assert isinstance(found, Tensor)
        return nn.functional.pad(found, (0, self.deeper * found.shape[2])) if self.deeper else found


class LanguageModel(nn.Module):
    """Prefill: a prompt as embeddings to the logits of its last token and all keys and values.

    Prompts of a batch are padded on the left. The inputs that tell of images are for passes; the
    program as captured does not read them, unless the tokens of an image see each other.

    Args:
        model: The decoder.
        head: Hidden states to logits.
        sees: What a token of a prompt attends to.
        deeper: L, see `Vision`.
        every: Whether logits of all tokens come out, [B, T, V].
    """

    def __init__(
        self, model: nn.Module, head: nn.Module, *, sees: Sees = "causal", deeper: int = 0,
        every: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.head = model, head
        self.sees, self.deeper, self.every = sees, deeper, every

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
        place = torch.arange(length, device=inputs_embeds.device)
        seen = square if self.sees == "prompt" else square.tril()
        if self.sees == "image":
            number = _image_numbers(attention_mask, image_positions)
            same = number[:, None, :, None] == number[:, None, None, :]
            seen = seen | (same & (number > 0)[:, None, :, None])
        # Padding sees itself: a row that sees nothing would come out as NaN.
        mask = (seen & attention_mask[:, None, None, :].to(torch.bool)) | (place[:, None] == place)
        cache = _Recorder()
        more: dict[str, Any] = {}
        if self.deeper:
            first, *rest = inputs_embeds.chunk(1 + self.deeper, dim=2)
            inputs_embeds = first
            more = {"visual_pos_masks": _Everywhere(), "deepstack_visual_embeds": rest}
        found = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **more,
        )
        hidden = found.last_hidden_state
        logits = self.head(hidden if self.every else hidden[:, -1:])
        layers = [cache.layers[i] for i in sorted(cache.layers)]
        return (logits, *(x for layer in layers for x in layer))


def _image_numbers(valid: Tensor, image_positions: Tensor) -> Tensor:
    """[B, T]: which image of its prompt a token is of, from 1, and 0 for text."""
    number = torch.arange(1, image_positions.shape[1] + 1, device=valid.device)
    number = number[None, :, None].expand_as(image_positions)
    places = image_positions.reshape(image_positions.shape[0], -1)
    return torch.zeros_like(valid).scatter(1, places, number.reshape(places.shape))


def _as_tensor(features: Any) -> Tensor:
    """Features of images, which some models hand out as a list of images."""
    if isinstance(features, (tuple, list)):
        features = torch.stack(tuple(features))
    assert isinstance(features, Tensor)
    return features


class _Everywhere:
    """Stands where a mask of image tokens would: what is added there is added to all tokens."""

    def to(self, *_: Any) -> slice:
        return slice(None)


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


def split(model: nn.Module, pictures: Pictures | None = None, *, sees: Sees = "causal") -> Parts:
    """The parts of an image-text model of transformers, weights shared with it.

    Args:
        model: The model.
        pictures: What it is compiled for, None for what its config says.
        sees: What a token of a prompt attends to.

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
    table = model.get_input_embeddings()  # type: ignore[operator]
    deeper = deeper_layers(model)
    pictures = pictures or pictures_of(model)
    return Parts(
        Vision(inner, pictures) if pictures.tiling is None else TiledVision(inner),
        Embedding(table, image_token_of(model), deeper),
        LanguageModel(language, head, sees=sees, deeper=deeper),
    )
