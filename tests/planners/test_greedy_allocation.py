"""Greedy allocation within a block: property W10."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from prunepass.analyse.projections import projections
from prunepass.errors import UsageError
from prunepass.planners.block_runs import Layer, record_blocks
from prunepass.planners.decoder_texts import text_inputs
from prunepass.planners.greedy_allocation import STEP, allocate_greedily, changed
from tests.tiny_decoders import captured, texts

# The layers of a block and their sizes; k and v of the tiny Llama are half as large as q and o.
LAYERS = [
    Layer(f"block[0].{name}", "magnitude", inputs, outputs)
    for name, inputs, outputs in (
        ("attention.q", 32, 32), ("attention.k", 32, 16), ("attention.v", 32, 16),
        ("attention.o", 32, 32), ("mlp.gate", 32, 56), ("mlp.up", 32, 56), ("mlp.down", 56, 32),
    )
]  # fmt: skip


def mean_keep(shares: dict[str, float]) -> float:
    sizes = {layer.site: layer.inputs * layer.outputs for layer in LAYERS}
    return sum(sizes[s] * k for s, k in shares.items()) / sum(sizes.values())


def test_w10_greedy_shares_meet_the_target_and_grow_with_it() -> None:
    runs = record_blocks(captured("llama"), text_inputs(captured("llama"), texts(6)))
    found = [allocate_greedily(runs, 0, LAYERS, keep=keep) for keep in (0.75, 0.6, 0.5, 0.35)]
    # What one step saves, of whatever layer.
    step = STEP * 32 * 32 / sum(layer.inputs * layer.outputs for layer in LAYERS)
    for keep, shares in zip((0.75, 0.6, 0.5, 0.35), found, strict=True):
        assert keep - step - 1e-9 < mean_keep(shares) <= keep + 1e-9
        assert all(0.0 < k <= 1.0 for k in shares.values())
    for more, less in pairwise(found):
        assert all(less[site] <= more[site] for site in more)


def test_greedy_is_no_worse_than_uniform_on_what_it_was_fitted_to() -> None:
    program = captured("llama")
    runs = record_blocks(program, text_inputs(program, texts(6)))
    nodes = {layer.site: layer for layer in LAYERS}
    sites = projections(runs.module.graph)
    greedy = allocate_greedily(runs, 0, LAYERS, keep=0.5)

    def error(shares: dict[str, float]) -> float:
        given = {sites[s]: ("magnitude", k) for s, k in shares.items()}
        return changed(runs.output(0, 0, given), runs.output(0, 0, {}))

    assert error(greedy) < error(dict.fromkeys(nodes, 0.5))


@pytest.mark.parametrize("step", [0, -0.1, float("nan"), 1.5, "0.1", None])
def test_steps_that_lead_nowhere_are_refused(step: Any) -> None:
    runs = record_blocks(captured("llama"), text_inputs(captured("llama"), texts(1)))
    with pytest.raises(UsageError, match="in steps of a share") as caught:
        allocate_greedily(runs, 0, LAYERS, keep=0.5, step=step)
    assert len(str(caught.value).splitlines()) == 3
