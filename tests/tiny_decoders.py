"""Language models of a few thousand parameters with random weights, captured once a session."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.language.programs import capture
from prunepass.planners.decoder_texts import step_inputs

FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "phi": ("PhiConfig", "PhiForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
}
SOME = [
    family if family == "llama" else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
]
"""For tests of all families: the first by default, the others where there is time."""
VOCABULARY = 40
LAYERS = 2


def config_of(family: str) -> Any:
    """Two layers of width 32, four heads over two of keys and values, embeddings tied in Llama."""
    import transformers

    return getattr(transformers, FAMILIES[family][0])(
        hidden_size=32, intermediate_size=56, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=family == "llama",
    )  # fmt: skip


def decoder(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model; gains differ from one and biases from zero, logits lie well apart."""
    import transformers

    kind = getattr(transformers, FAMILIES[family][1])
    model = kind._from_config(config_of(family), attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.normal_(mean, 0.3, generator=generator)
    return model.to(dtype).requires_grad_(False)


@cache
def captured(
    family: str, dtype: torch.dtype = torch.float32, *, every: bool = False
) -> ExportedProgram:
    """Its decoder as a program. Do not change it."""
    return capture(decoder(family, dtype), every=every)


def texts(count: int, tokens: int = 12) -> list[list[int]]:
    """Random texts."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (count, tokens), generator=generator).tolist()


@torch.no_grad()
def outputs(program: ExportedProgram, tokens: list[list[int]]) -> tuple[Tensor, ...]:
    """Logits, keys and values for texts of one length."""
    module = program.module(check_guards=False)
    found: tuple[Tensor, ...] = module(*step_inputs(program, torch.tensor(tokens)))
    return found
