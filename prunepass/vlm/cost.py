"""What one prefill costs, counted from its program, and whether pruning it pays."""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram

from prunepass.analyse.flops import macs
from prunepass.errors import PlanError
from prunepass.graph import meta

TEXT = 64
"""Text tokens of the prompt that plans are held against, half of them behind the image."""


def prompt_macs(program: ExportedProgram, *, image_tokens: int, text_tokens: int = TEXT) -> int:
    """Multiply-accumulates of one prompt with one image, everything counted: scoring, logits.

    Args:
        program: A prefill, pruned or not.
        image_tokens: Tokens of the image.
        text_tokens: All others; half of them stand behind the image and are asked.
    """
    tokens, rows = image_tokens + text_tokens, max(1, text_tokens // 2)
    shapes: dict[str, Sequence[int]] = {
        "inputs_embeds": (1, tokens),
        "image_positions": (1, 1, image_tokens),
        "asking_positions": (1, rows),
        "asking_votes": (1, rows),
        "attention_mask": (1, tokens),
    }
    return macs(program, sizes=meta.sizes_for(program.graph, shapes))


def check_pays(dense: ExportedProgram, pruned: ExportedProgram, *, image_tokens: int) -> float:
    """MACs of the pruned prefill over those of the dense one.

    Raises:
        PlanError: It costs as much as the dense one, or more.
    """
    ratio = prompt_macs(pruned, image_tokens=image_tokens) / prompt_macs(
        dense, image_tokens=image_tokens
    )
    if ratio >= 1.0:
        raise PlanError(
            "this plan cannot pay: choosing tokens costs more than is saved",
            found=f"{ratio:.3f} of the MACs of the dense prefill",
            fix="prune more tokens, or behind earlier layers",
        )
    return ratio
