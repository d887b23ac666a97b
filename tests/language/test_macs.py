from __future__ import annotations

import pytest

from prunepass.analyse.flops import macs
from prunepass.language import decoder_macs
from prunepass.language.macs import macs_above
from prunepass.passes.sparsify_inputs import sparsify_inputs
from prunepass.plans import Step
from tests.tiny_decoders import captured

# width, keys and values, MLP, layers, vocabulary
MODELS = {
    "Qwen2.5-7B": (3584, 512, 18944, 28, 152064),
    "Llama-2-7B": (4096, 4096, 11008, 32, 32000),
    "Llama-3-8B": (4096, 1024, 14336, 32, 128256),
    "Phi-4": (5120, 1280, 17920, 40, 100352),
}
PUBLISHED = {
    "Qwen2.5-7B": (7.07, 5.44, 4.46, 3.81, 2.83),
    "Llama-2-7B": (6.61, 4.99, 4.02, 3.37, 2.40),
    "Llama-3-8B": (7.50, 5.76, 4.71, 4.01, 2.97),
    "Phi-4": (14.15, 10.74, 8.69, 7.33, 5.28),
}
KEEPS = (1.0, 0.75, 0.6, 0.5, 0.35)


def cost(name: str, keep: float, *, rotated: bool = False) -> float:
    hidden, key_value, intermediate, layers, vocabulary = MODELS[name]
    return decoder_macs(
        hidden=hidden, key_value=key_value, intermediate=intermediate, layers=layers,
        vocabulary=vocabulary, keep=keep, rotated=rotated,
    ) / 1e9  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_w11_all_twenty_published_values(name: str) -> None:
    for keep, published in zip(KEEPS, PUBLISHED[name], strict=True):
        assert cost(name, keep) == pytest.approx(published, abs=0.011)


def test_w11_rotated_shortcuts_cost_what_the_paper_leaves_out() -> None:
    counted = [cost("Llama-2-7B", keep, rotated=True) for keep in KEEPS[1:]]
    assert counted == pytest.approx([6.06, 5.09, 4.44, 3.47], abs=0.011)


def test_w11_programs_are_counted_alike_but_for_attention() -> None:
    formula = decoder_macs(
        hidden=32, key_value=16, intermediate=56, layers=2, vocabulary=40
    )  # fmt: skip
    attention = 2 * 2 * (2 * 32)  # two layers, one old and one new token, scores and values
    assert macs(captured("llama")) == formula + attention


def test_layers_are_dense_above_the_rows_of_their_steps() -> None:
    """Layers of a hand-written plan may differ in how many tokens they are sparse for."""
    program = captured("llama")
    steps = tuple(
        Step(kind="sparsify_inputs", site=f"block[0].mlp.{role}", rule="magnitude", keep=keep,
             options={"rows": rows})
        for role, keep, rows in (("gate", 8, 2), ("up", 24, 4), ("down", 28, 0))
    )  # fmt: skip
    dense = macs(program)
    smaller, _ = sparsify_inputs(program, steps)
    assert macs(smaller) == dense - (24 + 8) * 56
    assert macs_above(smaller) == ((2, dense - 8 * 56), (4, dense))
    assert macs_above(program) == ()
