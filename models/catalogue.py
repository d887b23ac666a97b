"""The models this package can build by name, and how to load them."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import nn

from .plain_mamba import plain_mamba_l1, plain_mamba_l2, plain_mamba_l3
from .tiny_ssm import MEAN as CIFAR_MEAN
from .tiny_ssm import STD as CIFAR_STD
from .tiny_ssm import tiny_plain_mamba, tiny_vim
from .tiny_vit import tiny_vit
from .vim import vim_base, vim_small, vim_tiny

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to build a model, load its weights and prepare its pictures."""

    name: str
    build: Callable[[], nn.Module]
    weights: str | None  # file in WEIGHTS_FOLDER; None where no trained weights are shipped
    image_size: int  # pixels a side
    mean: tuple[float, float, float]  # of each RGB channel in 0..1, taken away from pictures
    std: tuple[float, float, float]  # of each RGB channel, pictures are divided by it
    crop: float  # share of the resized side that the centre crop keeps, 0..1; 1.0: no crop
    description: str


def catalogue() -> Mapping[str, ModelCard]:
    """All models, by name."""
    cards = (
        ModelCard(
            name="tiny_vit_patch8_96",
            build=tiny_vit,
            weights="tiny_vit_patch8_96.safetensors",
            image_size=96,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            crop=1.0,
            description="plain ViT (145 tokens, 128 channels, 8 blocks) trained on generated "
            "pictures of 12 classes",
        ),
        *_small_state_space(),
        *_published(),
    )
    return MappingProxyType({card.name: card for card in cards})


def _small_state_space() -> tuple[ModelCard, ...]:
    """State-space models trained by scripts/train_tiny_ssm, with weights."""
    return tuple(
        ModelCard(
            name=f"{name}_32",
            build=build,
            weights=f"{name}_32.safetensors",
            image_size=32,
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
            crop=1.0,
            description=f"{description} trained on CIFAR-10",
        )
        for name, build, description in (
            ("tiny_vim", tiny_vim, "Vision Mamba (50 tokens, 64 channels, 8 blocks)"),
            ("tiny_plain_mamba", tiny_plain_mamba, "PlainMamba (64 tokens, 64 channels, 8 layers)"),
        )
    )


def _published() -> tuple[ModelCard, ...]:
    """State-space models of the papers, which take the authors' weights; none are shipped."""
    return tuple(
        ModelCard(
            name=name,
            build=build,
            weights=None,
            image_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop=0.875,
            description=description,
        )
        for name, build, description in (
            ("vim_tiny_patch16_224", vim_tiny, "Vision Mamba, 7 M parameters"),
            ("vim_small_patch16_224", vim_small, "Vision Mamba, 26 M parameters"),
            ("vim_base_patch16_224", vim_base, "Vision Mamba, 98 M parameters"),
            ("plain_mamba_l1", plain_mamba_l1, "PlainMamba, 7 M parameters"),
            ("plain_mamba_l2", plain_mamba_l2, "PlainMamba, 25 M parameters"),
            ("plain_mamba_l3", plain_mamba_l3, "PlainMamba, 50 M parameters"),
        )
    )


def load(name: str, *, weights: Literal["pretrained", "random"] = "pretrained") -> nn.Module:
    """The named model in eval mode, float32, with the shipped weights or with random ones.

    Random weights come from torch's global generator. Needs safetensors for the shipped ones.

    Raises:
        ValueError: the name is unknown, `weights` is neither word, or no weights are shipped.
        RuntimeError: the shipped weights do not fit the model (torch's strict loading).
    """
    cards = catalogue()
    if name not in cards:
        raise ValueError(_unknown(name, list(cards)))
    if weights not in ("pretrained", "random"):
        raise ValueError(f"weights is 'pretrained' or 'random'; found {weights!r}")
    card = cards[name]
    model = card.build()
    if weights == "pretrained":
        if card.weights is None:
            raise ValueError(
                f"no trained weights are shipped for {name}\n  try:   load({name!r}, "
                "weights='random'), or load_state_dict with weights of your own"
            )
        from safetensors.torch import load_file

        stored = load_file(WEIGHTS_FOLDER / card.weights)
        model.load_state_dict({key: value.float() for key, value in stored.items()}, strict=True)
    return model.float().eval()


def _unknown(name: str, known: list[str]) -> str:
    """A message that lists the known names, nearest first."""

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    nearest = sorted(known, key=lambda other: (-likeness(other), other))
    return f"unknown model {name!r}\n  try:   one of {', '.join(nearest)}"
