"""Small state-space models for pictures of 32 x 32 pixels: ten classes of things (CIFAR-10)."""

from __future__ import annotations

from typing import Any

from .plain_mamba import PlainMamba
from .vim import Vim

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of each RGB channel in 0..1, over the pictures they are trained on."""


def tiny_vim(*, image_size: int = 32, **more: Any) -> Vim:
    """Vim of 50 tokens: patches of 8 x 8 pixels, 4 apart, and the class token in their middle."""
    return Vim(
        image_size=image_size, patch=8, stride=4, channels=64, depth=8, states=8,
        classes=len(CLASSES), **more,
    )  # fmt: skip


def tiny_plain_mamba(*, image_size: int = 32, **more: Any) -> PlainMamba:
    """PlainMamba of 64 tokens; what a scan takes is all in its own order, as the paper has it."""
    return PlainMamba(
        image_size=image_size, patch=4, channels=64, depth=8, states=8, classes=len(CLASSES),
        stem_convolutions=0, grid_layers=(0,), as_published=False, **more,
    )  # fmt: skip
