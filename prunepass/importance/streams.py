"""What runs through the layers in one batch: cosines over them, moments of hidden states."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from prunepass.calibrate import Batch, Watch, run
from prunepass.importance.subject import Subject, Sums
from prunepass.rules.input_modification import summed_cosines
from prunepass.rules.principal_components import moments


@torch.no_grad()
def cosine_sums(subject: Subject, batch: Batch, index: int) -> Sums:
    """`cosine.SITE` and `tokens.SITE` for every block and branch."""
    found: Sums = {}
    held: dict[Node, Tensor] = {}
    ends: dict[Node, list[tuple[str, Node]]] = {}
    last: dict[Node, int] = {}
    for site, source, end in _pairs(subject):
        ends.setdefault(end, []).append((site, source))
        last[source] = max(last.get(source, 0), subject.order[end])

    def look(node: Node, value: Tensor) -> None:
        here = _tokens(value, batch, subject)
        for site, source in ends.get(node, ()):
            valid = _valid(batch, here, subject)
            total, tokens = summed_cosines(held[source], here, valid)
            found[f"cosine.{site}"], found[f"tokens.{site}"] = total, tokens
        for source in [s for s in held if last[s] <= subject.order[node]]:
            del held[source]
        if node in last:
            held[node] = here

    watches: dict[Node, Watch] = {node: partial(look, node) for node in {*ends, *last}}
    run(subject.module, batch, watches)
    return found


@torch.no_grad()
def hidden_moments(subject: Subject, batch: Batch, index: int) -> Sums:
    """`second.SITE`, `total.SITE` and `count.SITE` of what enters each branch's last layer."""
    found: Sums = {}

    def look(site: str, value: Tensor) -> None:
        here = _tokens(value, batch, subject)
        sums = moments(here, _valid(batch, here, subject))
        for name, total in zip(("second", "total", "count"), sums, strict=True):
            found[f"{name}.{site}"] = total

    hidden = {b.hidden: b.site for b in subject.branches if b.hidden is not None}
    run(subject.module, batch, {node: partial(look, site) for node, site in hidden.items()})
    return found


def _pairs(subject: Subject) -> list[tuple[str, Node, Node]]:
    """(site, node before, node behind) of every cosine."""
    found = [(block.site, block.source, block.end) for block in subject.blocks]
    module = subject.tap == "module"
    return found + [(b.site, b.source, b.added if module else b.node) for b in subject.branches]


def _tokens(value: Tensor, batch: Batch, subject: Subject) -> Tensor:
    """[B, T, C] of the examples of a batch, grids laid flat, without prefix tokens."""
    value = value[: len(batch)]
    if value.dim() == 4:
        value = value.flatten(1, 2)
    return value[:, subject.prefix :] if value.dim() == 3 else value[:, None]


def _valid(batch: Batch, like: Tensor, subject: Subject) -> Tensor | None:
    if batch.valid is None:
        return None
    valid = batch.valid[:, subject.prefix :]
    return valid if valid.shape[1] == like.shape[1] else None
