"""The small trained language model among the shared data, as a Llama of transformers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

START = 1  # the token a text begins with


def stories_file(folder: Path | None) -> Path | None:
    """The weights, None where they are not."""
    path = None if folder is None else folder / "stories260K" / "stories260K.bin"
    return path if path is not None and path.is_file() else None


def read_stories(path: Path) -> Any:
    """A LlamaForCausalLM in eval mode with fused attention.

    The file rotates neighbouring channels, transformers the two halves of a head: rows of q and k
    are put in that order.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    data = path.read_bytes()
    width, hidden, layers, heads, groups, vocabulary, context = struct.unpack("7i", data[:28])
    assert vocabulary > 0  # output and input embeddings are one
    values = torch.from_numpy(np.frombuffer(data[28:], dtype=np.float32).copy())
    head = width // heads
    place = 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        size = int(np.prod(shape))
        found = values[place : place + size].reshape(shape)
        place += size
        return found

    def halves(weight: Tensor, count: int) -> Tensor:
        parts = weight.reshape(layers, count, head // 2, 2, width)
        return parts.transpose(2, 3).reshape(layers, count * head, width)

    embedding = take(vocabulary, width)
    stacks = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": halves(take(layers, width, width), heads),
        "self_attn.k_proj": halves(take(layers, groups * head, width), groups),
        "self_attn.v_proj": take(layers, groups * head, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, hidden, width),
        "mlp.down_proj": take(layers, width, hidden),
        "mlp.up_proj": take(layers, hidden, width),
    }
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": take(width)}
    for name, stack in stacks.items():
        for layer in range(layers):
            state[f"model.layers.{layer}.{name}.weight"] = stack[layer]
    state["lm_head.weight"] = embedding
    config = LlamaConfig(
        hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, vocab_size=vocabulary,
        max_position_embeddings=context, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=START, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    model.load_state_dict(state)
    return model


@torch.no_grad()
def sampled_texts(model: Any, count: int, *, tokens: int, seed: int) -> list[list[int]]:
    """Texts that the model tells, drawn token by token at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.full((count, 1), START)
    cache = None
    for _ in range(tokens - 1):
        found = model(input_ids=texts[:, -1:], past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        shares = found.logits[:, -1].softmax(-1)
        texts = torch.cat([texts, torch.multinomial(shares, 1, generator=generator)], dim=1)
    return [text.tolist() for text in texts]


def read_words(path: Path) -> list[str]:
    """The text of each token of the vocabulary file beside the weights."""
    data = path.read_bytes()
    place, found = 4, []
    while place < len(data):
        _, length = struct.unpack("fi", data[place : place + 8])
        found.append(data[place + 8 : place + 8 + length].decode(errors="replace"))
        place += 8 + length
    return found
