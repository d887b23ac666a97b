"""Texts as inputs of a decoder's program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise PlanError(
            "texts to calibrate on come as a list", found=repr(texts)[:60],
            fix="[tokenizer(text)['input_ids'] for text in texts]",
        )  # fmt: skip
    if len(texts := list(texts)) == 0:
        raise PlanError(
            "there is nothing to calibrate on",
            found="no texts",
            fix="some 20 texts, or none at all",
        )
    found: dict[int, list[Tensor]] = {}
    for number, text in enumerate(texts):
        numbers, what = _numbers(text), None
        if numbers is None:
            what = f"{str(text)[:60]!r}"
        elif numbers.numel() == 0:
            what = "an empty text"
        elif len(numbers) > LONGEST:
            what = f"{len(numbers)} tokens, at most {LONGEST} fit in memory"
        elif int(numbers.min()) < 0 or int(numbers.max()) >= vocabulary:
            unknown = numbers[(numbers < 0) | (numbers >= vocabulary)]
            what = f"token {int(unknown[0])}, the model knows {vocabulary}"
        if what is not None:
            raise PlanError(
                f"calibration text {number} cannot be used",
                found=what,
                fix="texts as lists of token numbers, at least one in each, such as "
                "tokenizer(text)['input_ids']",
            )
        assert numbers is not None
        found.setdefault(len(numbers), []).append(numbers.long())
    return [torch.stack(alike) for alike in found.values()]


def _numbers(text: object) -> Tensor | None:
    """A text as a tensor [T], None where it holds no whole numbers, or is no list of them."""
    try:
        numbers = torch.as_tensor(text)
    except (TypeError, ValueError, RuntimeError):  # words, nothing, lists of unlike lengths
        return None
    whole = not numbers.is_floating_point() or numbers.numel() == 0  # of none a kind is made up
    return numbers if numbers.dim() == 1 and whole else None


def vocabulary(program: ExportedProgram) -> int:
    """How many tokens a decoder knows."""
    output = next(n for n in program.graph.nodes if n.op == "output")
    return int(output.args[0][0].meta["val"].shape[-1])
