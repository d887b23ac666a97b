"""The selective scan of state-space models, with decay and input stepped apart.

In a graph it is one node, `prunepass::selective_scan`: analysis finds it, a pass changes its
decay, and each backend writes it out in the form that is fastest there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop


@torch.library.custom_op("prunepass::selective_scan", mutates_args=())
def selective_scan(
    x: Tensor, delta: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """Outputs [B, T, C] of a linear recurrence along the tokens.

    h_t = exp(decay_t A) h_(t-1) + delta_t B_t x_t and y_t = C_t . h_t + D x_t for each channel,
    from h = 0. Models step both by the same `delta`; where tokens are left out between two others,
    the state has decayed for longer than the second one's input counts.

    Args:
        x: [B, T, C], the input.
        delta: [B, T, C], > 0, how much an input counts.
        decay: [B, T, C], >= 0, how long the state decays before it comes in.
        A: [C, S], < 0, rates of S states a channel.
        B: [B, T, S], how inputs enter the states.
        C: [B, T, S], how states are read.
        D: [C], how much of the input is passed by.

    Source: Gu and Dao, Mamba, 2023, arXiv 2312.00752, algorithm 2; two steps: design of ours for
    ToP-ViM, NeurIPS 2024, arXiv 2409.18962.
    """
    return scan_steps(x, delta, decay, A, B, C, D)[0]


def scan_steps(
    x: Tensor, delta: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, C] one step after the other, and states [T, B, S, C]: the reference.

    States stand before channels, so that each step works on long rows.
    """
    steps = x.shape[1]
    rates = A.t().contiguous()
    entering = delta * x
    state = x.new_zeros(x.shape[0], A.shape[1], x.shape[2])
    states = []
    for t in range(steps):
        kept = torch.exp(decay[:, t, None] * rates) * state
        state = torch.addcmul(kept, B[:, t, :, None], entering[:, t, None])
        states.append(state)
    every = torch.stack(states) if states else x.new_zeros(0, *state.shape)
    read = torch.einsum("tbsc,bts->btc", every, C)
    return read + D * x, every


def scan_loop(
    x: Tensor, delta: Tensor, decay: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """`selective_scan` as one loop of a graph, for compilers that write loops.

    Blocks of tokens, all worked on at once, took half as long again; `scan`, the operation that
    torch has for this, does not compile with a batch of any size.
    """
    rates, steps = A.t().contiguous(), x.shape[1]
    decays, inputs, enters, reads = (
        v.transpose(0, 1).contiguous() for v in (decay, delta * x, B, C)
    )

    def more(t: Tensor, state: Tensor, found: Tensor) -> Tensor:
        return t < steps

    def step(t: Tensor, state: Tensor, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        here = t.item()
        torch._check(here >= 0)
        torch._check(here < steps)
        now = [v.select(0, here) for v in (decays, inputs, enters, reads)]  # type: ignore[arg-type]
        state = torch.exp(now[0][:, None] * rates) * state + now[2][:, :, None] * now[1][:, None]
        read = (now[3][:, :, None] * state).sum(1)
        return t + 1, state, torch.select_scatter(found, read, 0, here)  # type: ignore[arg-type]

    start = x.new_zeros(x.shape[0], A.shape[1], x.shape[2])
    first = torch.zeros((), dtype=torch.int64)
    *_, found = while_loop(more, step, (first, start, torch.zeros_like(decays)))
    return found.transpose(0, 1) + D * x


@selective_scan.register_fake
def _shape(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return scan_gradients(grad, *ctx.saved_tensors)


def scan_gradients(
    grad: Tensor,
    x: Tensor,
    delta: Tensor,
    decay: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of all operands of `selective_scan`, given that of its output [B, T, C].

    A scan the other way: what a state adds to the loss is what its own step reads, and what it
    passes on to the next.
    """
    _, states = scan_steps(x, delta, decay, A, B, C, D)
    rates = A.t()
    to_state = torch.zeros_like(states[0])
    of_entering, of_decay, of_b = [], [], []
    of_rates = torch.zeros_like(rates)
    for t in reversed(range(x.shape[1])):
        to_state = torch.addcmul(to_state, C[:, t, :, None], grad[:, t, None])
        of_entering.append(torch.einsum("bsc,bs->bc", to_state, B[:, t]))
        of_b.append(torch.einsum("bsc,bc->bs", to_state, delta[:, t] * x[:, t]))
        to_state = torch.exp(decay[:, t, None] * rates) * to_state
        if t:
            turned = to_state * states[t - 1]
            of_decay.append((turned * rates).sum(1))
            of_rates += (turned * decay[:, t, None]).sum(0)
        else:
            of_decay.append(torch.zeros_like(decay[:, 0]))
    entering = torch.stack(of_entering[::-1], 1)
    return (
        entering * delta + grad * D,
        entering * x,
        torch.stack(of_decay[::-1], 1),
        of_rates.t(),
        torch.stack(of_b[::-1], 1),
        torch.einsum("btc,tbsc->bts", grad, states),
        (grad * x).sum((0, 1)),
    )


SCAN = torch.ops.prunepass.selective_scan.default

selective_scan.register_autograd(_gradients, setup_context=_remember)
