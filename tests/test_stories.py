"""The reader of the small trained language model that quality is measured on."""

from __future__ import annotations

import pytest
import torch

from tests.data import shared_data
from tests.stories import read_stories, read_words, sampled_texts, stories_file


def test_it_tells_the_story_it_is_known_for() -> None:
    path = stories_file(shared_data())
    if path is None:
        pytest.skip("no stories260K: PRUNEPASS_DATA names the folder that has it")
    model, words = read_stories(path), read_words(path.with_name("tok512.bin"))
    numbers = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(26):
            last = model(input_ids=numbers, use_cache=False).logits[:, -1:].argmax(-1)
            numbers = torch.cat([numbers, last], dim=1)
    said = "".join(words[n] for n in numbers[0, 1:].tolist())
    assert said.strip().startswith("Once upon a time, there was a little girl named Lily")
    texts = sampled_texts(model, 2, tokens=9, seed=0)
    assert [len(text) for text in texts] == [9, 9]
    assert texts == sampled_texts(model, 2, tokens=9, seed=0)
