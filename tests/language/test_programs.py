from __future__ import annotations

import pytest
import torch
from torch import nn

from prunepass.errors import CaptureError, UnsupportedGraph
from prunepass.language.compile import check_program
from prunepass.language.programs import capture
from prunepass.planners.decoder_texts import step_inputs
from tests.tiny_decoders import SOME, captured, decoder, outputs, texts


@pytest.mark.parametrize("family", SOME)
def test_program_says_what_the_model_says(family: str) -> None:
    program, model = captured(family), decoder(family)
    with torch.no_grad():
        check_program(program, model)  # a prompt, then a token behind it
        right = model(input_ids=torch.tensor(texts(2)), use_cache=False).logits[:, -1:]
    torch.testing.assert_close(outputs(program, texts(2))[0], right, rtol=1e-4, atol=1e-4)


def test_logits_of_every_token() -> None:
    with torch.no_grad():
        right = decoder("llama")(input_ids=torch.tensor(texts(2)), use_cache=False).logits
    found = outputs(captured("llama", every=True), texts(2))[0]
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_token_by_token_is_the_same_as_at_once() -> None:
    program = captured("qwen2", torch.float64)
    run = program.module(check_guards=False)
    numbers = torch.tensor(texts(1))
    with torch.no_grad():
        whole = run(*step_inputs(program, numbers))
        _, *cache = run(*step_inputs(program, numbers[:, :1]))
        for at in range(1, numbers.shape[1]):
            one = numbers[:, at : at + 1]
            logits, *new = run(
                one, torch.ones_like(one), torch.full_like(one, at), torch.zeros(1).long(),
                torch.ones(1, at, dtype=torch.int64), *cache,
            )  # fmt: skip
            cache = [torch.cat(pair, dim=2) for pair in zip(cache, new, strict=True)]
    torch.testing.assert_close(logits, whole[0], rtol=1e-6, atol=1e-6)


def test_a_program_that_says_something_else_is_refused() -> None:
    other = decoder("llama")
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
        with pytest.raises(UnsupportedGraph, match="says something else") as caught:
            check_program(captured("llama"), other)
    assert len(str(caught.value).splitlines()) == 3


def test_refuses_what_is_no_language_model() -> None:
    with pytest.raises(UnsupportedGraph, match="no language model"):
        capture(nn.Linear(2, 2).eval())
    with pytest.raises(CaptureError, match="training mode"):
        capture(decoder("llama").train())
