"""Texts as inputs of a decoder's program."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunepass.errors import PlanError
from prunepass.planners.decoder_texts import checked_texts, step_inputs, vocabulary
from tests.tiny_decoders import VOCABULARY, captured, decoder, texts


def test_texts_of_one_length_come_together() -> None:
    found = checked_texts([[1, 2], [3], [4, 5]], 6)
    assert [text.tolist() for text in found] == [[[1, 2], [4, 5]], [[3]]]


def test_texts_may_be_tensors() -> None:
    assert checked_texts(torch.tensor([[1, 2], [4, 5]]), 6)[0].tolist() == [[1, 2], [4, 5]]  # type: ignore[arg-type]


def test_a_program_knows_its_vocabulary() -> None:
    assert vocabulary(captured("llama")) == VOCABULARY


def test_inputs_of_a_prompt_say_what_the_model_says() -> None:
    tokens = torch.tensor(texts(2, tokens=5))
    program = captured("llama")
    logits = program.module(check_guards=False)(*step_inputs(program, tokens))[0]
    with torch.no_grad():
        told = decoder("llama")(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits, told[:, -1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "nothing to calibrate on"),
        ([[1, 2], []], "text 1 cannot be used\n  found: an empty text"),
        ([[1, 40]], "text 0 cannot be used"),
        ([[-1]], "text 0 cannot be used"),
        ([[0.5, 1.0]], "text 0 cannot be used"),
        ([[3, -1]], "token -1"),
        ([[41, 3]], "token 41"),
        (["Once upon a time"], "'Once upon a time'"),
        ("Once upon a time", "come as a list"),
        (5, "come as a list"),
        ([5], "text 0 cannot be used"),
        ([None], "text 0 cannot be used"),
        ([["Once", "upon"]], "text 0 cannot be used"),
        ([[[1], [2, 3]]], "text 0 cannot be used"),
        ([[1 << 70]], "text 0 cannot be used"),
        ([[1] * 8193], "text 0 cannot be used"),
    ],
)
def test_texts_that_cannot_be_used(calibration: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        checked_texts(calibration, VOCABULARY)
    assert len(str(caught.value).splitlines()) == 3
