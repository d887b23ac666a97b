"""Texts as inputs of a decoder's program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.errors import PlanError

LONGEST = 8192
"""Tokens of the longest calibration text: its attention is held in memory."""


def text_inputs(
    program: ExportedProgram, texts: Sequence[Sequence[int]]
) -> list[tuple[Tensor, ...]]:
    """Inputs of a decoder's program for texts as token numbers, those of one length together.

    Raises:
        PlanError: See `checked_texts`.
    """
    return [step_inputs(program, batch) for batch in checked_texts(texts, vocabulary(program))]


def step_inputs(program: ExportedProgram, tokens: Tensor) -> tuple[Tensor, ...]:
    """Inputs of a decoder's program for texts [B, T] with nothing before them."""
    _, _, _, dropped, past_valid, *layers = program.example_inputs[0]
    batch, length = tokens.shape
    position = torch.arange(length, device=tokens.device).expand(batch, length)
    return (
        tokens, torch.ones_like(tokens), position, torch.zeros_like(dropped),
        past_valid.new_zeros(batch, 1),
        *(x.new_zeros(batch, x.shape[1], 1, x.shape[3]) for x in layers),
    )  # fmt: skip


def checked_texts(texts: Sequence[Sequence[int]], vocabulary: int) -> list[Tensor]:
    """Texts as tensors [B, T] int64, those of one length together.

    Raises:
        PlanError: There are none, or one is empty, too long, or holds unknown tokens.
    """
    if not texts:
        raise PlanError(
            "there is nothing to calibrate on",
            found="no texts",
            fix="some 20 texts, or none at all",
        )
    found: dict[int, list[Tensor]] = {}
    for number, text in enumerate(texts):
        numbers = torch.as_tensor(text)
        what = None
        if numbers.numel() == 0:
            what = "an empty text"
        elif numbers.dim() != 1 or numbers.is_floating_point():
            what = f"{str(text)[:60]}"
        elif len(numbers) > LONGEST:
            what = f"{len(numbers)} tokens, at most {LONGEST} fit in memory"
        elif int(numbers.min()) < 0 or int(numbers.max()) >= vocabulary:
            what = f"token {int(numbers.max())}, the model knows {vocabulary}"
        if what is not None:
            raise PlanError(
                f"calibration text {number} cannot be used",
                found=what,
                fix="texts as lists of token numbers, at least one in each",
            )
        found.setdefault(len(numbers), []).append(numbers.long())
    return [torch.stack(alike) for alike in found.values()]


def vocabulary(program: ExportedProgram) -> int:
    """How many tokens a decoder knows."""
    output = next(n for n in program.graph.nodes if n.op == "output")
    return int(output.args[0][0].meta["val"].shape[-1])
