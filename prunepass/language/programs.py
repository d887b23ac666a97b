"""A language model as one program: a few new tokens and a cache to logits and what to cache.

Prefill and decoding are the same program. A prompt is many new tokens and an empty cache, so its
linear layers are dense; one token at a time they may be sparse, with the same stored weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from prunepass.analyse.projections import label_projections
from prunepass.analyse.sequence import hoist_in_layers
from prunepass.analyse.sites import label_sites
from prunepass.errors import CaptureError, UnsupportedGraph, first_line
from prunepass.graph.writes import fold_writes
from prunepass.passes.extend_cache import extend_cache
from prunepass.vlm.programs import LONGEST
from prunepass.vlm.split import LanguageModel


class Decoder(nn.Module):
    """Token numbers to logits and all keys and values, with no cache before them.

    Args:
        model: A ...ForCausalLM of transformers.
        every: Whether logits of all tokens come out, or those of the last.

    Raises:
        UnsupportedGraph: The model has no decoder, embedding or head of its own.
    """

    def __init__(self, model: nn.Module, *, every: bool = False) -> None:
        super().__init__()
        decoder = getattr(model, "model", None)
        head = getattr(model, "lm_head", None)
        if not isinstance(decoder, nn.Module) or not isinstance(head, nn.Module):
            raise UnsupportedGraph(
                f"{type(model).__name__} is no language model that can be taken apart",
                found="it has no model and lm_head",
                fix="a ...ForCausalLM of transformers, such as Llama, Qwen2 or Phi",
            )
        self.embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        self.language = LanguageModel(decoder, head, every=every)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits [B, 1, V], or [B, T, V], then keys and values [B, G, T, D] of each layer.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T] int64, 0 for padding.
            position_ids: [B, T] int64.
        """
        none = attention_mask  # of images, which a causal mask does not ask for
        embeds = self.embedding(input_ids)
        found: tuple[Tensor, ...] = self.language(
            embeds, attention_mask, position_ids, none, none, none
        )
        return found


def capture(model: nn.Module, *, every: bool = False) -> ExportedProgram:
    """A language model as a labelled program of dynamic batch and lengths.

    Its inputs are those of `extend_cache` for one stage: `input_ids`, `attention_mask` and
    `position_ids` [B, S] of new tokens, `dropped` [1] (zero), `past_valid_0` [B, P], and keys and
    values [B, G, P, D] of each layer, P >= 1. Its outputs: logits [B, 1, V] of the last token, or
    of all of them, then keys and values of the new tokens.

    Args:
        model: A ...ForCausalLM of transformers, in eval mode.
        every: Whether logits of all new tokens come out, for measuring quality.

    Raises:
        CaptureError: The model is in training mode, or torch.export refuses it.
        UnsupportedGraph: It is no decoder with fused attention.
    """
    if any(module.training for module in model.modules()):
        raise CaptureError(
            "cannot capture a model in training mode", found="model.training is True", fix="eval()"
        )
    tokens, batch = Dim("tokens", min=1, max=LONGEST), Dim("batch", min=1)
    numbers = torch.arange(11).expand(2, 11).contiguous()
    along = {0: batch, 1: tokens}
    try:
        with torch.no_grad():
            program = torch.export.export(
                Decoder(model, every=every).eval(),
                (numbers % 2, torch.ones_like(numbers), numbers),
                dynamic_shapes=(along, along, along), strict=False,
            )  # fmt: skip
    except UnsupportedGraph:
        raise
    except Exception as error:
        raise CaptureError(
            "torch.export could not capture the language model",
            found=f"{type(error).__name__}: {first_line(error)}",
            fix="check that it exports by itself, with attn_implementation='sdpa'",
        ) from error
    fold_writes(program, "language model")
    program = label_projections(label_sites(program))
    hoist_in_layers(program)
    return extend_cache(program, (0,), positions="keep_original")
