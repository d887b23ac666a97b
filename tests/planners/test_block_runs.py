"""Blocks of a decoder run one by one."""

from __future__ import annotations

from prunepass.planners.block_runs import record_blocks
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
