from __future__ import annotations

from typing import Any

import pytest
import torch

from prunepass.analyse.flops import macs
from prunepass.analyse.projections import label_projections, projections, role_of
from prunepass.apply import apply_plan
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.passes.rotate_inputs import rotate_inputs
from prunepass.passes.sparsify_inputs import sparsify_inputs
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Step
from prunepass.vlm.programs import capture_language
from prunepass.vlm.split import split
from tests.tiny_decoders import captured, outputs, texts
from tests.tiny_language import IMAGE_TOKENS, small_llava

PIVOTS = {"llama": ("k", "gate"), "qwen2": ("k", "gate"), "phi3": ("qkv", "gate_up")}


def steps(family: str) -> list[Step]:
    sites = projections(captured(family).graph)
    return [
        Step(kind="rotate_inputs", site=site, rule="orthogonal-columns", keep=1.0)
        for site in sites
        if role_of(site) in PIVOTS[family]
    ]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float64),
        pytest.param("llama", torch.float32, marks=pytest.mark.slow),
        pytest.param("qwen2", torch.float64, marks=pytest.mark.slow),
        pytest.param("phi3", torch.float64, marks=pytest.mark.slow),
    ],
)
def test_w6_the_rotated_model_says_what_the_model_says(family: str, dtype: torch.dtype) -> None:
    program = captured(family, dtype)
    rotated, record = rotate_inputs(program, steps(family))
    assert record.applied == tuple(
        f"block[{i}].{p}" for i in range(2) for p in ("attention", "mlp")
    )
    for found, want in zip(outputs(rotated, texts(2)), outputs(program, texts(2)), strict=True):
        # The norms of these models reckon in float32, whatever the model.
        gap = (found - want).abs().max() / want.abs().max()
        assert float(gap) < (1e-6 if dtype is torch.float64 else 1e-4)


@pytest.mark.slow
def test_w6_in_bfloat16_probabilities_stay() -> None:
    program = captured("llama", torch.bfloat16)
    rotated, _ = rotate_inputs(program, steps("llama"))
    exact = outputs(captured("llama", torch.float64), texts(4))[0]
    near = outputs(program, texts(4))[0]
    turned = outputs(rotated, texts(4))[0]
    # Rounding alone moves logits; a rotation is to move them by no more than a few times that.
    scale = exact.abs().max()
    rounding = float((near - exact).abs().max() / scale)
    assert float((turned - exact).abs().max() / scale) < max(1e-3, 3 * rounding)


@pytest.mark.parametrize("family", ["llama", pytest.param("phi3", marks=pytest.mark.slow)])
def test_w5_columns_of_pivots_are_orthogonal(family: str) -> None:
    rotated, _ = rotate_inputs(captured(family, torch.float64), steps(family))
    checked = 0
    for site, node in projections(rotated.graph).items():
        weight: Any = node.args[1]
        if role_of(site) in PIVOTS[family]:
            name = next(
                str(s.target) for s in rotated.graph_signature.input_specs
                if s.arg.name == weight.name
            )  # fmt: skip
            gram = rotated.state_dict[name].T @ rotated.state_dict[name]
            off = gram - torch.diag(gram.diag())
            assert float(off.abs().max() / gram.abs().max()) < 1e-5
            checked += 1
    assert checked == 4


def test_w14_biases_of_queries_keys_and_values_stay() -> None:
    program = captured("qwen2", torch.float64)
    rotated, _ = rotate_inputs(program, steps("qwen2"))
    biases = [n for n in program.state_dict if n.endswith("proj.bias")]
    assert len(biases) == 6
    for name in biases:
        assert torch.equal(program.state_dict[name], rotated.state_dict[name])


def test_tied_embeddings_become_two_and_the_program_given_stays() -> None:
    program = captured("llama", torch.float64)
    before = {n: v.clone() for n, v in program.state_dict.items()}
    rotated, _ = rotate_inputs(program, steps("llama"))
    assert all(torch.equal(before[n], v) for n, v in program.state_dict.items())
    tables = [v for v in rotated.state_dict.values() if v.shape == (40, 32)]
    assert len(tables) >= 2
    assert any(not torch.equal(tables[0], other) for other in tables[1:])


def test_embeddings_from_outside_are_turned_as_they_come_in() -> None:
    """The language model of a LLaVA: token embeddings and image features are its inputs."""
    program = label_projections(
        capture_language(
            split(small_llava().double()).language, channels=32, image_tokens=IMAGE_TOKENS,
            dtype=torch.float64,
        )
    )  # fmt: skip
    plan = plan_inputs(program, keep=1.0, smallest=0, rotate=True)
    rotated = apply_plan(program, plan)
    given = program.example_inputs[0]
    with torch.no_grad():
        found, want = rotated.module()(*given), program.module()(*given)
    assert float((found[0] - want[0]).abs().max() / want[0].abs().max()) < 1e-6
    parts = len([step for step in plan.steps if step.kind == "rotate_inputs"])
    assert macs(rotated) - macs(program) == parts * 32**2
    assert plan.notes["macs_ratio"] == pytest.approx(macs(rotated) / macs(program), abs=2e-3)


def test_products_of_the_shortcuts_are_counted() -> None:
    program = captured("llama", torch.float64)
    rotated, _ = rotate_inputs(program, steps("llama"))
    # Four parts, and nothing changes behind the last.
    assert macs(rotated) - macs(program) == 3 * 32 * 32


def test_sparse_and_rotated_in_one_plan() -> None:
    program = captured("llama", torch.float64)
    plan = plan_inputs(program, keep=0.5, smallest=0, rows=1 << 40, rotate=True)
    found = outputs(apply_plan(program, plan), texts(1))[0]
    want = outputs(program, texts(1))[0]
    assert found.shape == want.shape
    assert float((found - want).abs().max()) > 1e-6
    assert "rotations add" in str(plan.notes["rotation"])


def test_w8_grouped_keys_lose_nothing_once_rotated() -> None:
    """k has 16 outputs of 32 inputs: half of its rotated inputs carry everything."""
    program = captured("llama", torch.float64)
    rotated, _ = rotate_inputs(program, steps("llama"))
    step = Step(kind="sparsify_inputs", site="block[1].attention.k", rule="weight-norm", keep=0.5,
                options={"rows": 1 << 40})  # fmt: skip
    sparse, _ = sparsify_inputs(rotated, [step])
    for found, want in zip(outputs(sparse, texts(1)), outputs(program, texts(1)), strict=True):
        assert float((found - want).abs().max() / want.abs().max()) < 1e-6


def test_refuses_norms_with_a_mean() -> None:
    norms = [
        Step(kind="rotate_inputs", site=f"block[{i}].{layer}", rule="orthogonal-columns", keep=1.0)
        for i in range(2)
        for layer in ("attention.k", "mlp.up")
    ]
    with pytest.raises(UnsupportedGraph, match="rotate=False") as caught:
        rotate_inputs(captured("phi"), norms)
    assert len(str(caught.value).splitlines()) == 3


def test_refuses_half_a_rotation() -> None:
    with pytest.raises(PlanError, match="in all of its parts or in none"):
        rotate_inputs(captured("llama"), steps("llama")[:-1])
    wrong = Step(kind="rotate_inputs", site="block[0].mlp.gate", rule="magnitude", keep=1.0)
    with pytest.raises(PlanError, match="cannot be rotated"):
        rotate_inputs(captured("llama"), [wrong])
