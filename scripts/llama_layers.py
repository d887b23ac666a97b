"""Layers of Llama-2-7B's proportions with random weights: what sparse activation is timed on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.kernels.sparse_linear import checked_count, gated_linear
from prunepass.rules.weight_aware import column_norm, input_score, threshold_of


class Linears(nn.Module):
    """Layers of one shape after each other, as in decoding: dense, or with weights input-major.

    There are enough of them to find none in a cache that was there in the turn before.

    Args:
        weight: [n_out, n_in].
        keep: Share of the inputs that are read, None for a dense layer.
        size: Bytes of all weights together, at least.
        calibration: [n_in], an input whose scores give a threshold; None for so many inputs a
            token, however large.
    """

    def __init__(
        self, weight: Tensor, keep: float | None, *, size: int, calibration: Tensor | None = None
    ) -> None:
        super().__init__()
        self.keep = keep
        self.limits: list[float | None] = []
        self.weights, self.norms = nn.ParameterList(), nn.ParameterList()
        for i in range(max(2, math.ceil(size / weight.nbytes))):
            one = weight.roll(i, 0)
            norm, stored = column_norm(one), one if keep is None else one.t().contiguous()
            self.weights.append(nn.Parameter(stored, requires_grad=False))
            self.norms.append(nn.Parameter(norm, requires_grad=False))
            if keep is not None and calibration is not None:
                scores = input_score(calibration, norm).double().cpu()
                self.limits.append(threshold_of(scores, keep))
            else:
                self.limits.append(None)

    def forward(self, x: Tensor) -> Tensor:
        """The first output of every layer for x [1, n_in]."""
        return torch.stack([self.one(i, x)[0, 0] for i in range(len(self.weights))])

    def one(self, i: int, x: Tensor) -> Tensor:
        """What a layer says to x [1, n_in]: [1, n_out]."""
        if self.keep is None:
            return nn.functional.linear(x, self.weights[i])
        count = checked_count(self.keep, x.shape[-1])
        return gated_linear(
            x, input_score(x, self.norms[i]), self.weights[i], count, self.limits[i], 1
        )


def llama_layers(dtype: str, *, layers: int, hidden: int) -> Any:
    """Layers of Llama-2-7B's geometry with random weights and next to no head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11008 // 4096, vocab_size=64,
        num_hidden_layers=layers, num_attention_heads=hidden // 128, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(
        config, attn_implementation="sdpa", dtype=getattr(torch, dtype)
    )
    return model.requires_grad_(False).eval()
