"""Blocks of a decoder run one by one."""

from __future__ import annotations

import pytest
import torch

from prunepass.analyse.projections import projections
from prunepass.planners.block_runs import Layer, record_blocks, thresholds
from prunepass.planners.decoder_texts import text_inputs
from prunepass.planners.greedy_allocation import changed
from tests.tiny_decoders import captured, texts


def test_runs_of_a_block_say_what_the_program_says() -> None:
    program = captured("llama")
    runs = record_blocks(program, text_inputs(program, texts(3)))
    stream = runs.output(1, 0, {})
    assert stream.shape == (3, 12, 32)
    masked = runs.output(
        1, 0, {n: ("magnitude", 0.3) for n in runs.blocks[1] if "linear" in n.name}
    )
    assert changed(masked, stream) > 0.0 == changed(stream, stream)


def test_w12_thresholds_leave_the_share_of_the_scores_that_are_run() -> None:
    """Of CATS those of the activated gate, not of its product with up."""
    program = captured("llama", torch.float64)
    runs = record_blocks(program, text_inputs(program, texts(20)))
    down = projections(runs.module.graph)["block[0].mlp.down"]
    silu = next(n for n in runs.blocks[0] if "silu" in str(n.target))
    for rule, node in (("gate-activation", silu), ("magnitude", down.args[0])):
        layer = Layer("block[0].mlp.down", rule, 56, 32)
        (limit,) = thresholds(runs, [layer], {layer.site: 0.5}).values()
        above = (runs.values[0][node].abs() > limit).double().mean()  # type: ignore[index]
        assert float(above) == pytest.approx(0.5, abs=0.01)


def test_masks_of_cats_are_those_of_the_activated_gate() -> None:
    program = captured("llama", torch.float64)
    runs = record_blocks(program, text_inputs(program, texts(3)))
    down = projections(runs.module.graph)["block[0].mlp.down"]
    plain, gated = (
        runs.output(0, 0, {down: (rule, 0.3)}) for rule in ("magnitude", "gate-activation")
    )
    assert changed(plain, gated) > 0.0
