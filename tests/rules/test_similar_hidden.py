from __future__ import annotations

import torch

from prunepass.rules.similar_hidden import similar_hidden


def test_a_copy_at_an_odd_place_is_the_first_to_go() -> None:
    x = torch.eye(6)[None].clone()
    x[0, 3] = x[0, 4]
    assert similar_hidden(x)[0].argmin() == 3


def test_tokens_at_even_places_come_last() -> None:
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    score = similar_hidden(x)
    assert score.shape == (2, 7)
    assert score[:, 1::2].max() < score[:, ::2].min()
    assert similar_hidden(x[:, :6]).shape == (2, 6)
