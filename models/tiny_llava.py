"""A small LLaVA for the generated pictures and questions of `prunepass.models.questions`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .questions import SIZE, WORDS, token_numbers

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

WEIGHTS = Path(__file__).parent / "weights" / "tiny_llava.safetensors"
"""The shipped weights, float16; what they do is in the .json file beside them."""

PATCH = 4
"""Pixels a side of what becomes one image token."""
IMAGE_TOKENS = (SIZE // PATCH) ** 2
IMAGE_TOKEN = WORDS.index("<image>")
BEFORE_IMAGE = (WORDS.index("<s>"), *token_numbers("look at the picture"))
"""The tokens before those of the image; the question comes after them."""

MEAN = (0.5, 0.5, 0.5)
"""Of each RGB channel in 0..1, taken away from pictures."""
STD = (0.25, 0.25, 0.25)
"""Of each RGB channel, what is left is divided by it."""


def tiny_llava() -> LlavaForConditionalGeneration:
    """A LLaVA with random weights in train mode: pictures [B, 3, 64, 64] and tokens -> logits.

    The vision encoder (CLIP's; C = 128 channels, 4 blocks, 4 heads) makes 16 x 16 = 256 image
    tokens of 4 x 4 pixels and a class token, which is left out. Two linear layers take the place
    of the projector; the decoder (Llama's; 128 channels, 8 layers, 4 heads over 2 of keys and
    values) reads `input_ids` [B, T] as `prompt` makes them and gives logits [B, T, 33]. 1.8 million
    parameters. Random numbers come from torch's global generator. Needs transformers.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=WORDS.index("<pad>"),
        bos_token_id=WORDS.index("<s>"),
        eos_token_id=WORDS.index("</s>"),
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def load_tiny_llava() -> LlavaForConditionalGeneration:
    """The model with the shipped weights, float32, in eval mode. Needs transformers, safetensors.

    Raises:
        RuntimeError: the shipped weights do not fit the model (torch's strict loading).
    """
    from safetensors.torch import load_file

    model = tiny_llava()
    stored = load_file(WEIGHTS)
    model.load_state_dict({key: value.float() for key, value in stored.items()}, strict=True)
    return model.train(False)


def prompt(question: str) -> list[int]:
    """The tokens of one question about one picture, one a word.

    `<s> look at the picture`, 256 times `<image>`, `QUESTION answer :`. What the model says next is
    the one word of the answer, and then `</s>`.
    """
    return [*BEFORE_IMAGE, *[IMAGE_TOKEN] * IMAGE_TOKENS, *token_numbers(f"{question} answer :")]


def normalised(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] in 0..1 as the model takes them: less `MEAN`, over `STD`."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return (pictures - mean[:, None, None]) / std[:, None, None]
