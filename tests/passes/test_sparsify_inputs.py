from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from prunepass.analyse.flops import macs
from prunepass.analyse.projections import projections
from prunepass.errors import PlanError, UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.kernels.sparse_linear import GATED_LINEAR
from prunepass.passes.sparsify_inputs import sparsify_inputs
from prunepass.planners.decoder_texts import step_inputs
from prunepass.plans import Step
from prunepass.rules.weight_aware import (
    column_norm,
    input_score,
    kept_inputs,
    masked_linear,
    threshold_mask,
    threshold_of,
    top_mask,
)
from tests.tiny_decoders import SOME, captured, outputs, texts


def steps(
    family: str, *, rule: str = "weight-norm", keep: float = 0.5, **options: Any
) -> list[Step]:
    """A step for each layer, for any number of rows."""
    options = {"rows": 1 << 40} | options
    sites = projections(captured(family, torch.float64).graph)
    return [
        Step(kind="sparsify_inputs", site=site, rule=rule, keep=keep, options=options)
        for site in sites
    ]


class Twin(Interpreter):
    """The dense program with each labelled layer masked: mask and dense product, nothing gained."""

    def __init__(self, family: str, planned: list[Step]) -> None:
        super().__init__(open_module(captured(family, torch.float64)))
        sites = projections(self.module.graph)  # type: ignore[arg-type]
        self.planned = {sites[s.site]: s for s in planned}

    def run_node(self, n: Node) -> Any:
        if n not in self.planned:
            return super().run_node(n)
        (x, weight, *rest), _ = self.fetch_args_kwargs_from_env(n)
        bias = rest[0] if rest else None
        step = self.planned[n]
        score = input_score(x, column_norm(weight) if step.rule == "weight-norm" else None)
        limit: Any = step.options.get("threshold")
        if limit is not None:
            return masked_linear(x, weight, bias, threshold_mask(score, limit))
        count = kept_inputs(x.shape[-1], float(step.keep))
        return masked_linear(x, weight, bias, top_mask(score, count))

    def outputs(self, tokens: list[list[int]]) -> tuple[Tensor, ...]:
        inputs = step_inputs(captured("llama", torch.float64), torch.tensor(tokens))
        with torch.no_grad():
            found: tuple[Tensor, ...] = self.run(*inputs)
        return found


@pytest.mark.parametrize("rule", ["weight-norm", "magnitude"])
@pytest.mark.parametrize("family", SOME)
def test_equals_the_masked_twin(family: str, rule: str) -> None:
    planned = steps(family, rule=rule)
    sparse, record = sparsify_inputs(captured(family, torch.float64), planned)
    assert list(record.applied) == [s.site for s in planned]
    assert record.left == {}
    right = Twin(family, planned).outputs(texts(2))
    for found, want in zip(outputs(sparse, texts(2)), right, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_threshold_equals_the_masked_twin() -> None:
    planned = steps("llama", threshold=0.4)
    sparse, _ = sparsify_inputs(captured("llama", torch.float64), planned)
    right = Twin("llama", planned).outputs(texts(1))
    torch.testing.assert_close(outputs(sparse, texts(1))[0], right[0], rtol=1e-6, atol=1e-6)


def test_keeping_everything_is_bit_identical() -> None:
    program = captured("llama", torch.float64)
    planned = steps("llama", keep=1.0)
    same, record = sparsify_inputs(program, planned)
    assert record.applied == ()
    assert set(record.left.values()) == {"it keeps all of its inputs"}
    pairs = zip(outputs(same, texts(1)), outputs(program, texts(1)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_threshold_below_every_score_leaves_a_layer_dense() -> None:
    """That is what calibration finds for a layer that is to keep everything."""
    program = captured("llama", torch.float64)
    planned = steps("llama", keep=1.0, threshold=threshold_of(torch.rand(9), 1.0))
    _, record = sparsify_inputs(program, planned)
    assert record.applied == ()
    assert set(record.left.values()) == {"it keeps all of its inputs"}


def test_prefill_and_batches_stay_dense() -> None:
    program = captured("llama", torch.float64)
    sparse, _ = sparsify_inputs(program, steps("llama", rows=1))
    for tokens in (texts(1, tokens=2), texts(3, tokens=1)):
        for found, want in zip(outputs(sparse, tokens), outputs(program, tokens), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
    one = texts(1, tokens=1)
    assert (outputs(sparse, one)[0] - outputs(program, one)[0]).abs().max() > 1e-3


def test_weights_are_replaced_not_added_to() -> None:
    program = captured("llama", torch.float64)
    sparse, _ = sparsify_inputs(program, steps("llama", rule="magnitude"))
    sizes = {name: value.numel() for name, value in program.state_dict.items()}
    assert {n: v.numel() for n, v in sparse.state_dict.items()} == sizes
    weighted, _ = sparsify_inputs(program, steps("llama"))
    more = sum(v.numel() for v in weighted.state_dict.values()) - sum(sizes.values())
    assert more == sum(n.args[1].meta["val"].shape[1] for n in projections(program.graph).values())
    stored = sparse.state_dict["language.model.layers.0.mlp.gate_proj.weight"]
    assert stored.shape == (32, 56)
    assert stored.is_contiguous()


def test_multiply_accumulates_are_those_of_the_inputs_that_are_read() -> None:
    program = captured("llama", torch.float64)
    sparse, _ = sparsify_inputs(program, steps("llama", rows=1))
    layers = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 56)
    assert macs(program) - macs(sparse) == layers // 2
    assert macs(program, batch=2) == macs(sparse, batch=2)


def test_layers_keep_their_labels_and_become_one_node_each() -> None:
    program = captured("llama", torch.float64)
    sparse, _ = sparsify_inputs(program, steps("llama"))
    nodes = sparse.graph.find_nodes(op="call_function", target=GATED_LINEAR)
    assert len(nodes) == 14
    assert "block[0].attention:q" in meta.labels(nodes[0])


def test_cats_gates_what_the_mlp_hands_down() -> None:
    program = captured("llama", torch.float64)
    sites = [f"block[{i}].mlp.down" for i in range(2)]
    planned = [
        Step(kind="sparsify_inputs", site=s, rule="gate-activation", keep=0.5,
             options={"rows": 1 << 40})
        for s in sites
    ]  # fmt: skip
    sparse, record = sparsify_inputs(program, planned)
    assert list(record.applied) == sites
    (node, *_) = sparse.graph.find_nodes(op="call_function", target=GATED_LINEAR)
    score = node.args[1]
    assert isinstance(score, Node)
    assert isinstance(score.args[0], Node)
    assert "silu" in str(score.args[0].target)


def test_low_rank_part_takes_what_the_gate_drops() -> None:
    """With a rank as large as the layer nothing is lost, whatever is kept."""
    program = captured("llama", torch.float64)
    sparse, _ = sparsify_inputs(program, steps("llama", keep=0.1, rank=32))
    for found, want in zip(outputs(sparse, texts(1)), outputs(program, texts(1)), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_what_is_planned_is_done_however_small_a_layer_is() -> None:
    sites = projections(captured("llama", torch.float64).graph)
    planned = [Step(kind="sparsify_inputs", site=s, rule="magnitude", keep=0.5) for s in sites]
    _, record = sparsify_inputs(captured("llama", torch.float64), planned)
    assert (record.applied, record.left) == (tuple(sites), {})


def test_small_layers_stay_dense_where_a_plan_says_so_and_the_record_says_why() -> None:
    sites = projections(captured("llama", torch.float64).graph)
    planned = [
        Step(kind="sparsify_inputs", site=s, rule="magnitude", keep=0.5, options={"smallest": 1000})
        for s in sites
    ]
    _, record = sparsify_inputs(captured("llama", torch.float64), planned)
    assert record.left["block[0].attention.k"] == "its weight has 512 numbers, too few to gain"
    assert "block[0].mlp.up" in record.applied


def test_nothing_to_gain_is_an_error_of_three_lines() -> None:
    with pytest.raises(UnsupportedGraph, match="too few to gain") as caught:
        sparsify_inputs(captured("llama"), steps("llama", smallest=1 << 20))
    assert len(str(caught.value).splitlines()) == 3


def test_quantised_weights_are_refused_with_a_reason() -> None:
    class Quantised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(8, 8, dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype) * 0.1)

    program = torch.export.export(Quantised(), (torch.randn(1, 8),))
    node = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    meta.add_label(node, "block[0].mlp:up")
    step = Step(kind="sparsify_inputs", site="block[0].mlp.up", rule="magnitude", keep=0.5)
    with pytest.raises(UnsupportedGraph, match="quantised") as caught:
        sparsify_inputs(program, [step])
    assert "original weights" in str(caught.value)
    assert "smallest" not in str(caught.value)


class Tied(torch.nn.Module):
    """Two layers of one weight, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.alone = torch.nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.alone(self.other(self.one(x)))
        return found


def tied(*roles: str, keep: float = 0.5, **options: Any) -> tuple[Any, list[Step]]:
    """Its program, and steps for some of its layers: up, gate, down."""
    program = torch.export.export(Tied(), (torch.randn(1, 8),))
    linear = torch.ops.aten.linear.default
    nodes = program.graph.find_nodes(op="call_function", target=linear)
    for node, role in zip(nodes, ("up", "gate", "down"), strict=True):
        meta.add_label(node, f"block[0].mlp:{role}")
    return program, [
        Step(kind="sparsify_inputs", site=f"block[0].mlp.{role}", rule="magnitude", keep=keep,
             options=options)
        for role in roles
    ]  # fmt: skip


def test_the_advice_fits_the_reason() -> None:
    for (program, planned), why, instead in (
        (tied("up", "gate"), "shared with another layer; 1 more", "a copy of the weight"),
        (tied("up", "down", smallest=100), "64 numbers, too few", "smallest=0"),
        (tied("down", keep=0.99, threshold=-1.0), "keeps all of its inputs", "a smaller keep"),
    ):
        with pytest.raises(UnsupportedGraph, match=why) as caught:
            sparsify_inputs(program, planned)
        assert f"try:   {instead}" in str(caught.value).replace("a larger model, or ", "")
        assert len(str(caught.value).splitlines()) == 3
    _, record = sparsify_inputs(*tied("up", "down"))
    assert record.applied == ("block[0].mlp.down",)
    assert record.left == {"block[0].mlp.up": "its weight is shared with another layer"}


def test_an_mlp_without_a_gate_is_pointed_to_another_rule() -> None:
    step = Step(kind="sparsify_inputs", site="block[0].mlp.down", rule="gate-activation", keep=0.5)
    with pytest.raises(UnsupportedGraph, match="no gate") as caught:
        sparsify_inputs(captured("phi"), [step])
    assert "the rule magnitude" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "block[9].mlp.up"}, "no linear layer at"),
        ({"rule": "weight-nrom"}, "no rule of inputs called"),
        ({"options": {"size": 0}}, "no option 'size'"),
        ({"rule": "gate-activation"}, "scores what a gated MLP hands down"),
        ({"keep": 0.001}, "between 1 and 32 inputs"),
        ({"keep": 33}, "between 1 and 32 inputs"),
        ({"options": {"rank": "2"}}, "option 'rank'"),
        ({"options": {"rank": -1}}, "option 'rank'"),
        ({"options": {"rows": 1.5}}, "option 'rows'"),
        ({"options": {"rows": True}}, "option 'rows'"),
        ({"options": {"smallest": None}}, "option 'smallest'"),
        ({"options": {"threshold": "0.1"}}, "option 'threshold'"),
    ],
)
def test_refuses_steps_that_fit_nothing(change: dict[str, Any], message: str) -> None:
    plain = {"kind": "sparsify_inputs", "site": "block[0].mlp.up", "rule": "magnitude", "keep": 0.5}
    with pytest.raises(PlanError, match=message) as caught:
        sparsify_inputs(captured("llama"), [Step(**{**plain, **change})])
    assert len(str(caught.value).splitlines()) == 3
