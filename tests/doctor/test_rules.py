"""Each rule finds the graph that falls into its trap, and accuses none that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.export import ExportedProgram

from prunepass.doctor.findings import Finding, examine, findings
from prunepass.doctor.read_onnx import view_of_model
from prunepass.doctor.rule import Rule
from prunepass.doctor.table import RULES
from prunepass.doctor.target import TARGETS, parse_target
from tests.doctor.graphs import EXAMPLES

NAMES = [rule.name for rule in RULES]


def saved(graph: Any, folder: Path) -> Any:
    """A graph as a user has it: an ONNX file, or a program."""
    if isinstance(graph, ExportedProgram):
        return graph
    path = folder / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def found(graph: Any, target: str, folder: Path) -> tuple[Finding, ...]:
    return examine(saved(graph, folder), targets=(target,))


def test_rules_are_many_and_differ() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 60
    assert set(EXAMPLES) == set(NAMES)
    for rule in RULES:
        assert rule.target in TARGETS
        assert rule.what
        assert rule.mend
        assert rule.source


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_known_bad_graph_is_found(rule: Rule, tmp_path: Path) -> None:
    example = EXAMPLES[rule.name]
    assert rule.holds(parse_target(example.target))
    told = [f for f in found(example.bad(), example.target, tmp_path) if f.rule == rule.name]
    assert told
    assert told[0].effect == rule.effect
    assert told[0].target == example.target
    assert told[0].found


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_known_good_graph_is_not_accused(rule: Rule, tmp_path: Path) -> None:
    example = EXAMPLES[rule.name]
    assert found(example.good(), example.target, tmp_path) == ()


ONNX = [name for name in NAMES if not name.startswith(("onnx-", "torch-", "flops-"))]
TOO_LARGE = {"trt-volume"}
"""Nothing to load on a small machine."""


@pytest.mark.parametrize("name", [n for n in ONNX if n not in TOO_LARGE])
@pytest.mark.parametrize("which", ["bad", "good"])
def test_onnx_runtime_itself_says_the_same(name: str, which: str, tmp_path: Path) -> None:
    """The verdict on the installed version, against a session of it."""
    runtime = pytest.importorskip("onnxruntime")
    path = saved(getattr(EXAMPLES[name], which)(), tmp_path)
    view = examine(path, targets=("onnxruntime",))
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        loads = True
    except Exception:
        loads = False
    assert loads == (not any(f.effect == "fails" for f in view)), [f.found for f in view]


def test_a_mean_is_lost_on_the_way_to_onnx() -> None:
    """Trap 1 of the list: the installed exporter writes a mean down as no reduction at all."""
    import torch

    exported = torch.onnx.export(
        EXAMPLES["onnx-scatter-mean"].bad(), dynamo=True, verbose=False, optimize=False
    )
    assert exported is not None
    (node,) = [n for n in exported.model.graph if n.op_type == "ScatterElements"]
    assert node.attributes["reduction"].as_string() == "none"


def test_graphs_within_graphs_and_constants_on_the_way() -> None:
    """A TopK in the body of an If, with a k that was put together from constants."""
    from onnx import parser

    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 5000] x, bool c) => (float y) <int64 a = {4000}> {
            y = If(c) <
                then_branch = t () => (float p) {
                    z = Constant<value_ints = [0]>()
                    k = Unsqueeze(a, z)
                    p, i = TopK(x, k) },
                else_branch = e () => (float q) { q = Relu(x) }> }"""
    )
    (told,) = findings(view_of_model(model), (parse_target("tensorrt==10"),))
    assert told.rule == "trt-top-k"
    assert "then_branch" in told.node
    assert told.found == "k = 4000"
