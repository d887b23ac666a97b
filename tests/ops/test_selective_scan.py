from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prunepass.ops.selective_scan import scan_loop, selective_scan
from prunepass.ops.token_places import line_convolution
from prunepass.rules.token_gaps import missing, slowed, spread

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def operands(
    batch: int, tokens: int, channels: int, states: int, seed: int = 0
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    delta = torch.rand(batch, tokens, channels, generator=generator, dtype=torch.float64)
    rates = -(0.1 + torch.rand(channels, states, generator=generator, dtype=torch.float64))
    return (
        normal(batch, tokens, channels), delta, delta.clone(), rates,
        normal(batch, tokens, states), normal(batch, tokens, states), normal(channels),
    )  # fmt: skip


def by_hand(
    x: Tensor, delta: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """One number at a time."""
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for c in range(x.shape[2]):
            for s in range(A.shape[1]):
                h = 0.0
                for t in range(x.shape[1]):
                    h = float(torch.exp(decay[b, t, c] * A[c, s])) * h
                    h += float(delta[b, t, c] * B[b, t, s] * x[b, t, c])
                    y[b, t, c] += C[b, t, s] * h
        y[b] += D * x[b]
    return y


def test_equals_the_recurrence_by_hand() -> None:
    given = operands(2, 6, 3, 4)
    given = (*given[:2], given[2] + torch.rand_like(given[2]), *given[3:])
    torch.testing.assert_close(selective_scan(*given), by_hand(*given), **EXACT)


@pytest.mark.parametrize("tokens", [1, 2, 3, 197, 4096])
def test_float32_is_close_to_float64_at_any_length(tokens: int) -> None:
    given = operands(1, tokens, 4, 3)
    exact = selective_scan(*given)
    found = selective_scan(*(a.float() for a in given))
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_long_gaps_do_not_overflow() -> None:
    """SS5: after ever longer gaps a token sees nothing of what was before it."""
    x, delta, decay, A, B, C, D = operands(1, 5, 3, 4)
    decay = decay.clone()
    decay[:, 3] += 1e30
    y = selective_scan(x, delta, decay, A, B, C, D)
    fresh = selective_scan(x[:, 3:], delta[:, 3:], decay[:, 3:], A, B[:, 3:], C[:, 3:], D)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y[:, 3:], fresh, **EXACT)


def test_as_one_loop_it_is_the_same() -> None:
    given = operands(2, 9, 3, 4, seed=2)
    torch.testing.assert_close(scan_loop(*given), selective_scan(*given), **EXACT)


def gradient_of(given: tuple[Tensor, ...]) -> bool:
    wanted = tuple(a.detach().requires_grad_() for a in given)
    return torch.autograd.gradcheck(selective_scan, wanted)


def test_gradients() -> None:
    given = operands(2, 4, 3, 2, seed=3)
    assert gradient_of((*given[:2], given[2] + 0.3, *given[3:]))


def test_stays_one_node_when_captured() -> None:
    class Model(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return selective_scan(*given)

    program = torch.export.export(Model(), operands(2, 7, 3, 4))
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    assert [n.target for n in calls] == [torch.ops.prunepass.selective_scan.default]


def test_decay0_equals_zeros_stepped_as_zeros() -> None:
    """SS2 and SS3: gaps equal the whole sequence with nothing entering where tokens are missing."""
    x, delta, _, A, B, C, D = operands(1, 9, 3, 4, seed=4)
    kept = [0, 1, 4, 5, 8]
    missing = [t for t in range(9) if t not in kept]
    zero_step = torch.rand(3, dtype=torch.float64)
    for steps in (delta.clone(), zero_step.expand(1, 9, 3).clone()):
        whole_x, whole_delta = x.clone(), delta.clone()
        whole_x[:, missing] = 0
        whole_delta[:, missing] = steps[:, missing]
        whole = selective_scan(whole_x, whole_delta, whole_delta, A, B, C, D)[:, kept]
        decay = delta[:, kept].clone()
        for k, (before, now) in enumerate(pairwise(kept), start=1):
            decay[:, k] += steps[:, before + 1 : now].sum(1)
        few = selective_scan(x[:, kept], delta[:, kept], decay, A, B[:, kept], C[:, kept], D)
        torch.testing.assert_close(few, whole, rtol=1e-13, atol=4e-16 * 100)


def test_reversing_the_sequence_and_the_directions() -> None:
    """SS6: the other direction is the same scan over the reversed sequence."""
    from tests.tiny_ssm import small_vim

    mixer = small_vim().layers[0].mixer
    x = torch.randn(2, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    there = mixer(x)
    for one in ("conv1d", "x_proj", "dt_proj"):
        a, b = getattr(mixer, one), getattr(mixer, f"{one}_b")
        setattr(mixer, one, b)
        setattr(mixer, f"{one}_b", a)
    mixer.A_log, mixer.A_b_log = mixer.A_b_log, mixer.A_log
    mixer.D, mixer.D_b = mixer.D_b, mixer.D
    torch.testing.assert_close(mixer(x.flip(1)).flip(1), there, rtol=1e-10, atol=1e-12)


def test_masking_is_scattering_with_the_leak_and_nothing_less() -> None:
    """SS10: tokens set to zero still get something out of the bias and the width of a convolution.

    So masking equals tokens spread over their places, convolved and scanned there; it is neither
    the compact convolution nor the spread one with dead places taken for nothing.
    """
    from tests.tiny_ssm import small_vim

    mixer = small_vim().layers[0].mixer
    generator = torch.Generator().manual_seed(6)
    u = torch.randn(1, 12, 24, dtype=torch.float64, generator=generator)
    places = torch.tensor([[0, 1, 3, 6, 7, 11]])
    dead = [t for t in range(12) if t not in places[0].tolist()]
    masked = u.clone()
    masked[:, dead] = 0

    def scanned(x: Tensor, delta: Tensor, decay: Tensor, enter: Tensor, read: Tensor) -> Tensor:
        return selective_scan(x, delta, decay, -mixer.A_log.exp(), enter, read, mixer.D)

    def stepped(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step, enter, read = mixer.x_proj(x).split(mixer.sizes, dim=2)
        return functional.softplus(mixer.dt_proj(step)), enter, read

    def convolved(x: Tensor) -> Tensor:
        return functional.silu(line_convolution(x, mixer.conv1d.weight, mixer.conv1d.bias))

    x = convolved(masked)
    delta, enter, read = stepped(x)
    oracle = scanned(x, delta, delta, enter, read)[:, places[0]]
    few = masked[:, places[0]]
    leaked = convolved(spread(few, places, tokens=12))
    delta, enter, read = stepped(leaked)
    torch.testing.assert_close(
        scanned(leaked, delta, delta, enter, read)[:, places[0]], oracle, **EXACT
    )
    extra = missing(places, None)
    for kept in (convolved(few), leaked[:, places[0]]):
        delta, enter, read = stepped(kept)
        decay = slowed(delta, extra, mixer.dt_proj.bias)
        assert (scanned(kept, delta, decay, enter, read) - oracle).abs().max() > 1e-3
