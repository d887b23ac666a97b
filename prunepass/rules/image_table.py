"""The table of rules that score image tokens inside a language model."""

from __future__ import annotations

import random as standard_random
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from prunepass.errors import looked_up
from prunepass.rules.image_tokens import best_of_each_image, kept_number
from prunepass.rules.table import Rule
from prunepass.rules.transition import transition_and_instruction

ROLES = ("transition", "instruction", "image")


def _itself(transition: Tensor) -> Tensor:
    """[B, N], the transition variation summed over layers."""
    return transition


def _paid(instruction: Tensor) -> Tensor:
    """[B, N], the attention that asking rows pay."""
    return instruction


def random_image_tokens(image: Tensor, *, seed: int = 0) -> Tensor:
    """Random numbers, the same for every prompt: [B, N] float32.

    A sine of a large argument: unlike a table it needs no fixed N, and every backend agrees on
    which is larger, since neighbours differ by far more than a rounding.

    Args:
        image: [B, N, C]; only its sizes are used.
    """
    draw = standard_random.Random(seed)
    stride, start = draw.uniform(2.0, 3.0), draw.uniform(0.0, 6.0)
    number = torch.ones_like(image[:, :, 0], dtype=torch.float32).cumsum(1)
    fast = (number * stride + start).sin() * 43.7585
    return fast - fast.floor()


IMAGE_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "transition-and-instruction": Rule(
            name="transition-and-instruction",
            kind="score",
            function=transition_and_instruction,
            needs=("transition", "instruction"),
            options=MappingProxyType({"alpha": 0.5}),
            source="TransPrune, arXiv 2507.20630, section 3.3",
            summary="how much modules change a token, and how much the text looks at it",
        ),
        "transition": Rule(
            name="transition",
            kind="score",
            function=_itself,
            needs=("transition",),
            source="TransPrune, arXiv 2507.20630, TTV alone",
            summary="how much modules change a token, in size and direction",
        ),
        "instruction": Rule(
            name="instruction",
            kind="score",
            function=_paid,
            needs=("instruction",),
            source="TransPrune IGA; FastV, ECCV 2024; PyramidDrop, CVPR 2025; SparseVLM, ICML 2025",
            summary="attention that text pays to a token",
        ),
        "random-image-tokens": Rule(
            name="random-image-tokens",
            kind="score",
            function=random_image_tokens,
            needs=("image",),
            options=MappingProxyType({"seed": 0}),
            source="baseline of the token pruning papers",
            summary="the same random tokens in every image",
        ),
    }
)


def image_rule(name: str) -> Rule:
    """The row called `name`.

    Raises:
        PlanError: There is none; the known names are listed, nearest first.
    """
    return looked_up(IMAGE_RULES, name, "rule")


def choose_image_tokens(
    name: str,
    roles: Mapping[str, Tensor],
    image: Tensor,
    original: Tensor,
    *,
    keep: int | tuple[int, int],
    options: Mapping[str, object],
) -> Tensor:
    """Which image tokens stay, by the rule called `name`: [B, I, K] int64, ascending.

    Args:
        name: A key of `IMAGE_RULES`.
        roles: What the rule needs: transition and instruction [B, I N], image [B, I N, C].
        image: [B, I, N], positions of the image tokens that are left.
        original: [B, I, N0], positions they all had.
        keep: How many stay of each image, or which share (part, whole) of N0.
        options: Override the row's defaults.
    """
    row = image_rule(name)
    score = row.function(**roles, **{**row.options, **options})
    assert isinstance(score, Tensor)
    count = kept_number(original.shape[2], keep) if isinstance(keep, tuple) else keep
    return best_of_each_image(score.reshape(image.shape[0], -1, image.shape[2]), count)
