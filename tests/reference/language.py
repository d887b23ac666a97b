"""A decoder of transformers run layer by layer by hand, image tokens dropped on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.rules.transition import transition_and_instruction, transition_variation


@dataclass
class Twin:
    """What a run by hand came to.

    Attributes:
        logits: [1, V] of the last token.
        keys: Layer -> [1, G, T, D].
        kept: One list of original positions for each cut.
    """

    logits: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    kept: list[list[int]] = field(default_factory=list)


def prefill(
    language: nn.Module,
    head: nn.Module,
    embeds: Tensor,
    image: list[int],
    asking: list[int],
    *,
    cuts: Mapping[int, int],
    accumulate: tuple[int, ...] = (),
    positions: str = "keep_original",
    mode: str = "both",
    absolute: bool = True,
) -> Twin:
    """One prompt [1, T, C]; `cuts` is layer (from 1) -> image tokens that stay.

    `mode`: both, transition, instruction, or last (own layer's attention of the last row).
    """
    any_language: Any = language
    place = torch.arange(embeds.shape[1])[None]
    twin, x = Twin(torch.empty(0)), embeds
    here, image, asking = list(range(embeds.shape[1])), list(image), list(asking)
    summed = torch.zeros(len(image), dtype=embeds.dtype)
    layers = any_language.layers
    for number, layer in enumerate(layers, start=1):
        tables = any_language.rotary_emb(x, place)
        u1 = layer.input_layernorm(x)
        v1, k = _attend(layer.self_attn, u1, tables)
        before, x = x, x + v1
        twin.keys[number - 1] = k
        u2 = layer.post_attention_layernorm(x)
        v2 = layer.mlp(u2)
        x = x + v2
        if number in accumulate:
            for u, v in ((u1, v1), (u2, v2)):
                summed += transition_variation(u[:, image], v[:, image], absolute=absolute)[0]
        if number not in cuts:
            continue
        if mode == "last":
            paid = _probabilities(layer.self_attn, layer.input_layernorm(before), tables)
        else:
            following = layers[number]
            paid = _probabilities(following.self_attn, following.input_layernorm(x), tables)
        instruction = paid[0, :, asking].mean(0).mean(0)[image]
        score = {
            "both": lambda s=summed, i=instruction: transition_and_instruction(s[None], i[None])[0],
            "transition": lambda s=summed: s,
            "instruction": lambda i=instruction: i,
            "last": lambda i=instruction: i,
        }[mode]()
        chosen = sorted(score.topk(cuts[number]).indices.tolist())
        stay = {image[i] for i in chosen}
        kept = [t for t in range(len(here)) if t not in set(image) or t in stay]
        x, summed = x[:, kept], summed[chosen]
        place = place[:, kept] if positions == "keep_original" else torch.arange(len(kept))[None]
        image = [kept.index(image[i]) for i in chosen]
        asking = [kept.index(a) for a in asking]
        here = [here[t] for t in kept]
        twin.kept.append(here)
    twin.logits = head(any_language.norm(x))[0, -1:]
    return twin


def _heads(attention: Any, u: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    shape = (*u.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(u).view(shape).transpose(1, 2)
    key = attention.k_proj(u).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *tables)
    return query, key


def _probabilities(attention: Any, u: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """[1, H, T, T], causal."""
    query, key = _heads(attention, u, tables)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.transpose(2, 3) * attention.head_dim**-0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(3)


def _attend(attention: Any, u: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    probabilities = _probabilities(attention, u, tables)
    value = attention.v_proj(u).view(*u.shape[:2], -1, attention.head_dim).transpose(1, 2)
    value = value.repeat_interleave(probabilities.shape[1] // value.shape[1], 1)
    out = (probabilities @ value).transpose(1, 2).reshape(u.shape)
    return attention.o_proj(out), _heads(attention, u, tables)[1]
