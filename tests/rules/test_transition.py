"""Transition variation and its mix with instruction attention: properties TP1 to TP6 and TP8."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prunepass.rules.transition import transition_and_instruction, transition_variation


def vectors(seed: int, *, batch: int = 2, tokens: int = 7, channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, channels, generator=generator, dtype=torch.float64)


U, V = vectors(0), vectors(1)


def by_hand(u: Tensor, v: Tensor) -> Tensor:
    result = torch.empty(u.shape[:2], dtype=torch.float64)
    for b in range(len(u)):
        turns, sizes = [], []
        for t in range(u.shape[1]):
            x, y = u[b, t].tolist(), v[b, t].tolist()
            size = [math.sqrt(sum(a * a for a in z)) for z in (x, y)]
            dot = sum(a * c for a, c in zip(x, y, strict=True))
            turns.append(math.exp(1 - abs(dot / (size[0] * size[1]))))
            sizes.append(size[1] / size[0])
        for t, (turn, size_ratio) in enumerate(zip(turns, sizes, strict=True)):
            result[b, t] = turn / sum(turns) * size_ratio
    return result


def test_the_formula_by_hand() -> None:
    torch.testing.assert_close(transition_variation(U, V), by_hand(U, V), rtol=1e-12, atol=0)


def test_a_token_that_is_only_scaled_turns_by_nothing() -> None:  # TP1
    found = transition_variation(U, 3 * U)
    torch.testing.assert_close(found, torch.full_like(found, 3 / U.shape[1]), rtol=1e-9, atol=0)


def test_scaling_in_and_out_changes_nothing() -> None:  # TP2
    factor = torch.ones(1, U.shape[1], 1, dtype=torch.float64)
    factor[:, 3] = 11
    torch.testing.assert_close(
        transition_variation(U * factor, V * factor), transition_variation(U, V)
    )


def test_scaling_what_comes_out_scales_its_token() -> None:  # TP3
    factor = torch.ones(1, U.shape[1], 1, dtype=torch.float64)
    factor[:, 3] = 11
    found, before = transition_variation(U, V * factor), transition_variation(U, V)
    torch.testing.assert_close(found, before * factor[:, :, 0])


def test_only_the_paper_form_ignores_the_sign() -> None:  # TP4
    torch.testing.assert_close(transition_variation(U, -V), transition_variation(U, V))
    legacy = [transition_variation(U, s * V, absolute=False) for s in (1, -1)]
    assert not torch.allclose(*legacy)


def test_a_right_angle_counts_most() -> None:  # TP5
    u = torch.zeros(1, 3, 2, dtype=torch.float64)
    u[..., 0] = 1
    v = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    found = transition_variation(u, v)[0]
    assert found[1] == found.max()
    assert found[0] == pytest.approx(float(found[2]))


def test_the_sum_is_the_weighted_mean_of_the_sizes() -> None:  # TP6
    size = V.norm(dim=-1) / U.norm(dim=-1)
    turn = 1 - torch.cosine_similarity(U, V, dim=-1).abs()
    expected = (turn.softmax(dim=-1) * size).sum(dim=-1)
    torch.testing.assert_close(transition_variation(U, V).sum(dim=-1), expected)


def test_the_softmax_runs_over_the_chosen_tokens_of_each_prompt() -> None:
    among = torch.zeros(U.shape[:2], dtype=torch.bool)
    among[0, 1:4], among[1, 2:6] = True, True
    found = transition_variation(U, V, among=among)
    torch.testing.assert_close(found[0, 1:4], transition_variation(U[:1, 1:4], V[:1, 1:4])[0])
    torch.testing.assert_close(found[1, 2:6], transition_variation(U[1:, 2:6], V[1:, 2:6])[0])
    assert (found[~among] == 0).all()


def test_half_precision_squares_do_not_overflow() -> None:
    u, v = (1e3 * U).half(), (2e3 * V).half()
    found = transition_variation(u, v)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), 2 * transition_variation(U, V), rtol=5e-3, atol=0)


def test_the_mix_sums_to_one() -> None:  # TP8, with weights
    a, b = U.abs()[..., 0], V.abs()[..., 0]
    for alpha in (0.0, 0.4, 0.5, 1.0):
        mixed = transition_and_instruction(a, b, alpha=alpha)
        torch.testing.assert_close(mixed.sum(dim=-1), torch.ones(2, dtype=torch.float64))
    only = transition_and_instruction(a, b, alpha=1.0)
    torch.testing.assert_close(only, a / a.sum(dim=-1, keepdim=True))


def test_permuting_tokens_permutes_the_scores() -> None:
    order = torch.tensor([4, 2, 0, 6, 5, 1, 3])
    torch.testing.assert_close(
        transition_variation(U[:, order], V[:, order]), transition_variation(U, V)[:, order]
    )
