"""What a prompt costs, counted from the programs it runs through, and whether pruning pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.export import ExportedProgram

from prunepass.analyse.counting import counts
from prunepass.analyse.flops import macs
from prunepass.errors import PlanError
from prunepass.graph import meta
from prunepass.graph.parts import BEHIND

TEXT = 64
"""Text tokens of the prompt that plans are held against, half of them behind the image."""


def prompt_macs(program: ExportedProgram, *, image_tokens: int, text_tokens: int = TEXT) -> int:
    """Multiply-accumulates of one prompt with one image, everything counted: scoring, logits.

    Args:
        program: A prefill, pruned or not.
        image_tokens: Tokens of the image.
        text_tokens: All others; half of them stand behind the image and are asked.
    """
    return macs(program, sizes=_sizes(program, image_tokens, text_tokens))


@dataclass(frozen=True, kw_only=True)
class PromptCost:
    """Multiply-accumulates of one prompt with one picture, `TEXT` words beside it.

    Attributes:
        parts: Part of the model, `encoder` and the layers of the language model, to its MACs.
    """

    parts: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Of the whole prompt, to the first token of the answer."""
        return sum(self.parts.values())


def prompt_cost(
    encoder: ExportedProgram, prefill: ExportedProgram, *, image_tokens: int, tiles: int,
    layers: Sequence[int],
) -> PromptCost:  # fmt: skip
    """What a prompt costs with an encoder and a prefill, by part.

    Args:
        encoder: Pictures to image tokens.
        prefill: The language model behind it, pruned or not.
        image_tokens: Tokens of the picture.
        tiles: Pictures that the encoder takes for it.
        layers: For each layer of `prefill` its number in the model.
    """
    found = counts(prefill, sizes=_sizes(prefill, image_tokens, TEXT)).layers
    # Scoring for a later layer may run before an earlier one.
    order = sorted(found, key=lambda name: (name == BEHIND, _number(name)))
    parts = {"encoder": macs(encoder, batch=tiles)}
    for name in order:
        number = _number(name)
        parts[name if number < 0 else f"block[{layers[number]}]"] = found[name].macs
    return PromptCost(parts={name: count for name, count in parts.items() if count})


def _number(part: str) -> int:
    """3 of `block[3]`, -1 of what is no layer."""
    number = part.removeprefix("block[").removesuffix("]")
    return int(number) if number.isdecimal() else -1


def _sizes(program: ExportedProgram, image_tokens: int, text_tokens: int) -> dict[str, int]:
    """What the free sizes of a prefill are for one prompt with one image."""
    tokens, rows = image_tokens + text_tokens, max(1, text_tokens // 2)
    shapes: dict[str, Sequence[int]] = {
        "inputs_embeds": (1, tokens),
        "image_positions": (1, 1, image_tokens),
        "asking_positions": (1, rows),
        "asking_votes": (1, rows),
        "attention_mask": (1, tokens),
    }
    return meta.sizes_for(program.graph, shapes)


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
