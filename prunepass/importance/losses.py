"""What the loss of one batch says of the layers: slopes, gradients, suppressed branches."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from prunepass.calibrate import Batch, Watch, loss_of, run, scores_of, targets
from prunepass.importance.subject import Subject, Sums
from prunepass.rules.ecoflap import zeroth_order_slope
from prunepass.rules.suppression import SCALE, suppressed_half

ROUNDS = 16
"""Random halves a batch that are suppressed."""


def slopes(subject: Subject, batch: Batch, index: int) -> Sums:
    """|slope| of the loss along a random direction of each matrix, one matrix at a time."""
    labels = targets(subject.module, batch)
    found: Sums = {}
    loss = partial(_loss, subject, batch, labels)
    for number, name in enumerate(subject.matrices):
        seed = _seed(subject.seed, index, number)
        slope = zeroth_order_slope(loss, subject.weights[name], seed=seed)
        found[f"slope.{name}"] = torch.tensor(abs(slope), dtype=torch.float64)
    return found


def gradients(subject: Subject, batch: Batch, index: int) -> Sums:
    """|gradient| of the loss for each matrix, by backpropagation."""
    labels = targets(subject.module, batch)
    names = [n for n in subject.matrices if isinstance(subject.weights[n], torch.nn.Parameter)]
    weights = [subject.weights[name] for name in names]
    wanted = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            loss = loss_of(run(subject.module, batch), labels)
            slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    finally:
        for weight, before in zip(weights, wanted, strict=True):
            weight.requires_grad_(before)
    found = {
        f"gradient.{name}": slope.abs().double()
        for name, slope in zip(names, slopes, strict=True)
        if slope is not None
    }
    return {**found, "batches": torch.ones((), dtype=torch.float64)}


@torch.no_grad()
def suppressions(subject: Subject, batch: Batch, index: int) -> Sums:
    """Sums of a regression: who was suppressed, and how far the model came away from itself.

    The loss is the divergence from what the whole model says, so that no suppression looks like a
    gain only because the model grows surer of itself.
    """
    whole = scores_of(run(subject.module, batch))[: len(batch)]
    branches = subject.branches
    products = torch.zeros(len(branches), len(branches), dtype=torch.float64)
    answers = torch.zeros(len(branches), dtype=torch.float64)
    for number in range(ROUNDS):
        chosen = suppressed_half(len(branches), seed=_seed(subject.seed, index, number))
        damped = [b for b, out in zip(branches, chosen.tolist(), strict=True) if out]
        watches: dict[Node, Watch] = {branch.added: _damp for branch in damped}
        said = scores_of(run(subject.module, batch, watches))[: len(batch)]
        who = chosen.double()
        products += who[:, None] * who[None, :]
        answers += who * float(_divergence(whole, said))
    return {"suppress.products": products, "suppress.answers": answers}


def _divergence(whole: Tensor, said: Tensor) -> Tensor:
    """Mean KL divergence of class scores [B, V] from those of the whole model, nats."""
    p, q = whole.double().log_softmax(1), said.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1).mean()


def _loss(subject: Subject, batch: Batch, labels: Tensor) -> float:
    return float(loss_of(run(subject.module, batch), labels))


def _damp(value: Tensor) -> Tensor:
    return value * SCALE


def _seed(seed: int, batch: int, number: int) -> int:
    """A seed of its own for every draw of every batch."""
    return (seed * 1_000_003 + batch) * 1_000_003 + number
