"""A LLaVA of a few thousand parameters with random weights, and prompts for it."""

from __future__ import annotations

from typing import Any

import torch

IMAGE_TOKEN = 3
IMAGE_TOKENS = 16
LAYERS = 5
VOCABULARY = 40
BEFORE = [1, 7, 8, 9]
"""Tokens in front of the image."""


def small_llava() -> Any:
    """Pictures of 32 pixels, 16 image tokens, 5 decoder layers of 4 heads over 2, eval mode.

    Weights are large enough that no two logits come near each other.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=56, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=512,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.3, generator=generator)
    return model


def prompt(seed: int, *, words: int = 6, images: int = 1) -> list[int]:
    """Tokens of a prompt: some, one for each image, then `words` random ones."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.randint(4, VOCABULARY, (words,), generator=generator).tolist()
    return [*BEFORE, *[IMAGE_TOKEN] * images, *said]


def pixels(seed: int, images: int = 1) -> torch.Tensor:
    """Random pictures [I, 3, 32, 32], float64."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(images, 3, 32, 32, generator=generator, dtype=torch.float64)


def in_memory(model: Any, **wanted: Any) -> Any:
    """A bundle of a model that lies in no folder, run by PyTorch. `wanted` as for `compile`."""
    from prunepass.backends.eager import EagerEngine
    from prunepass.vlm.generate import VlmBundle
    from prunepass.vlm.rewrite import rewrite

    programs, manifest, *_ = rewrite(model, **wanted)
    engines = {k: EagerEngine(p.module(check_guards=False)) for k, p in programs.items()}
    return VlmBundle(manifest, engines, None)
