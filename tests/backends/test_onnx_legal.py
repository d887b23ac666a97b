"""ONNX that is legal for its target: each lowering, and whole programs, say what they said."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_legal import NEWEST, Target, check_opset, illegal, legalise
from prunepass.backends.onnx_topk import LARGEST_K
from prunepass.capturing import capture
from prunepass.errors import BackendError, UsageError
from prunepass.graph.edit import seal
from tests.conftest import Captured
from tests.kept_indices import with_kept
from tests.steps import step
from tests.tiny_models import images
from tests.tiny_ssm import pictures, small_vim

KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
GENERATOR = np.random.default_rng(0)
FLOATS = GENERATOR.standard_normal((2, 6, 5)).astype("float32")
NUMBERS = GENERATOR.integers(-50, 50, (2, 6)).astype("int64")


def graph(
    op: str, inputs: dict[str, Any], outputs: int = 1, *, opset: int = 18, **more: Any
) -> Any:
    """A model of one operator; inputs that are lists are constants of it."""
    given = {k: v for k, v in inputs.items() if isinstance(v, np.ndarray)}
    fixed = [
        helper.make_tensor(k, TensorProto.INT64, [len(v)], v)
        for k, v in inputs.items()
        if isinstance(v, list)
    ]
    names = [f"out_{i}" for i in range(outputs)]
    node = helper.make_node(
        op, [k if v is not None else "" for k, v in inputs.items()], names, **more
    )
    made = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(k, KINDS[str(v.dtype)], v.shape) for k, v in given.items()],
        [onnx.ValueInfoProto(name=name) for name in names], fixed,
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: Any, inputs: dict[str, Any]) -> list[np.ndarray]:
    inferred = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(inferred.SerializeToString())
    given = {k: v for k, v in inputs.items() if isinstance(v, np.ndarray)}
    return session.run(None, given)


def lowered(model: Any, *, opset: int = 17, target: Target = "tensorrt") -> Any:
    found = onnx_ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))
    legalise(found, opset=opset, target=target)
    return onnx_ir.serde.serialize_model(found)


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


CASES: dict[str, tuple[str, dict[str, Any], int, dict[str, Any]]] = {
    "mean": ("ReduceMean", {"x": FLOATS, "axes": [1]}, 1, {"keepdims": 0}),
    "max": ("ReduceMax", {"x": FLOATS, "axes": [0, -1]}, 1, {}),
    "all axes": ("ReduceMin", {"x": FLOATS}, 1, {}),
    "no axes": ("ReduceMax", {"x": FLOATS, "axes": []}, 1, {"noop_with_empty_axes": 1}),
    "split": ("Split", {"x": FLOATS}, 3, {"axis": 2, "num_outputs": 3}),
    "pad": ("Pad", {"x": FLOATS, "pads": [1, 0, 2, 1], "value": None, "axes": [2, 0]}, 1, {}),
    "layer norm": (
        "LayerNormalization",
        {"x": FLOATS * 3 + 1, "scale": FLOATS[0, 0], "bias": FLOATS[1, 1]}, 1, {"epsilon": 1e-3},
    ),
    "layer norm of two axes": (
        "LayerNormalization", {"x": FLOATS, "scale": FLOATS[0]}, 1, {"axis": 1},
    ),
    "cast": ("CastLike", {"x": NUMBERS, "like": FLOATS}, 1, {}),
    "add": ("Add", {"x": NUMBERS, "y": NUMBERS * 3}, 1, {}),
    "equal": ("Equal", {"x": NUMBERS, "y": np.abs(NUMBERS)}, 1, {}),
    "scatter": (
        "ScatterElements",
        {"x": FLOATS, "index": np.abs(GENERATOR.integers(0, 6, (2, 9, 5))),
         "updates": GENERATOR.standard_normal((2, 9, 5)).astype("float32")},
        1, {"axis": 1, "reduction": "add"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_a_lowered_operator_is_the_operator(name: str) -> None:
    op, inputs, outputs, more = CASES[name]
    if "noop_with_empty_axes" in more:
        more = {**more, "keepdims": 1}
    model = graph(op, inputs, outputs, **more)
    made = lowered(model)
    assert [o.version for o in made.opset_import] == [17]
    assert made.ir_version == 8
    for want, got in zip(run(model, inputs), run(made, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    if name in ("layer norm", "layer norm of two axes", "cast", "scatter"):
        assert op not in operators(made)
    if name in ("add", "equal"):
        assert operators(made)["Cast"] >= 2


@pytest.mark.parametrize("largest", [0, 1])
def test_many_of_more_are_ranked_by_counting(largest: int) -> None:
    total, k = 4300, LARGEST_K + 100
    x = GENERATOR.standard_normal((2, total)).astype("float32").round(2)  # with ties
    inputs: dict[str, Any] = {"x": x, "k": [k]}
    model = graph("TopK", inputs, 2, largest=largest)
    made = lowered(model, opset=18)
    assert "TopK" not in operators(made)
    (values, _), (found, index) = run(model, inputs), run(made, inputs)
    np.testing.assert_array_equal(found, values)
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, order)  # of equals the lower index first
    few = graph("TopK", {"x": x, "k": [LARGEST_K]}, 2)
    assert "TopK" in operators(lowered(few))


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_norm_by_the_mean_square_is_its_parts(axis: int) -> None:
    inputs = {"x": FLOATS * 3 + 1, "scale": FLOATS[0, 0] if axis == -1 else FLOATS[0]}
    model = graph("RMSNormalization", inputs, opset=23, axis=axis, epsilon=1e-3)
    made = lowered(model, opset=23)
    assert "RMSNormalization" not in operators(made)
    (found,) = run(made, inputs)
    x, over = inputs["x"], -1 if axis == -1 else (1, 2)
    right = x / np.sqrt((x * x).mean(over, keepdims=True) + 1e-3) * inputs["scale"]
    np.testing.assert_allclose(found, right, rtol=2e-6, atol=2e-6)


class _Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_is_its_parts_for_tensorrt_at_every_opset(tmp_path: Path) -> None:
    x = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(_Attends(), (x,), strict=False)
    for target in ("tensorrt", "onnxruntime"):
        engine = OnnxBackend(target=target, opset=NEWEST).build(program, tmp_path)  # type: ignore[arg-type]
        torch.testing.assert_close(engine(x)[0], program.module()(x), rtol=1e-5, atol=1e-5)
        found = operators(onnx.load(str(tmp_path / "model.onnx")))
        assert ("Attention" in found) == (target == "onnxruntime")


def test_what_tensorrt_8_lacks_is_not_left() -> None:
    nodes = [
        helper.make_node("NonsenseOfAnother", ["x"], ["like"], domain="elsewhere"),
        helper.make_node("CastLike", ["x", "like"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    made = helper.make_graph(nodes, "cast", values[:1], values[1:])
    model = onnx_ir.serde.deserialize_model(helper.make_model(made))
    told = illegal(model, opset=17, target="tensorrt")
    assert any("TensorRT 8 has no such operator" in line for line in told)


def test_sizes_are_no_arithmetic() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=0, end=1),
        helper.make_node("Mul", ["size", "two"], ["double"]),
        helper.make_node("ConstantOfShape", ["double"], ["y"]),
    ]
    made = helper.make_graph(
        nodes, "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("two", TensorProto.INT64, [1], [2])],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert operators(lowered(model))["Cast"] == 0


REFUSED = {
    "NonZero": graph("NonZero", {"x": FLOATS}),
    "ScatterElements": graph(
        "ScatterElements",
        {"x": FLOATS, "i": np.abs(NUMBERS[:, :, None]) % 6, "u": FLOATS[:, :, :1]},
        axis=1, reduction="max",
    ),
    "TopK": graph("TopK", {"x": FLOATS, "k": np.array([2])}, 2),
    "Gelu": graph("Gelu", {"x": FLOATS}, opset=20),
}  # fmt: skip


@pytest.mark.parametrize("op", list(REFUSED))
def test_what_has_no_legal_form_is_refused(op: str) -> None:
    with pytest.raises(BackendError, match="no ONNX of opset 17") as caught:
        lowered(REFUSED[op])
    assert caught.value.found is not None
    assert caught.value.found.startswith(op)
    if op not in ("TopK", "Gelu"):
        model = onnx_ir.serde.deserialize_model(REFUSED[op])
        assert illegal(model, opset=18, target="onnxruntime") == []


@pytest.mark.parametrize("opset", [16, NEWEST + 1])
def test_opsets_that_are_not_written(opset: int) -> None:
    with pytest.raises(UsageError, match="are not written"):
        check_opset(opset)


@pytest.mark.parametrize("opset", [17, NEWEST])
def test_g9_reduced_programs_are_legal_and_keep_the_same_tokens(
    captured: Captured, tmp_path: Path, opset: int
) -> None:
    steps = [
        step("block[0].attention", "tome", 13, "merge"),
        step("block[2].attention", "zero-tprune", 8, iterations=3, similar=2),
    ]
    program = captured("mean", torch.float32)
    module = with_kept(program, steps)
    sealed = seal(module, program)
    backend = OnnxBackend(threads=1, opset=opset, target="tensorrt")
    engine = backend.build(sealed, tmp_path)
    x = images(3, seed=31, dtype=torch.float32)
    expected, *kept = module(x)
    result, *same = engine(x)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(same, kept, strict=True))
    model = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    found = operators(model)
    assert not {"NonZero", "Loop", "Scan", "If"} & set(found)
    assert ("CastLike" in found) <= (opset == NEWEST)
    assert ("LayerNormalization" in found) == (opset == NEWEST)
    assert ("Gelu" in found) == (opset == NEWEST)


class _Scan(nn.Module):
    def forward(self, x: Tensor, delta: Tensor, decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A = -torch.arange(1.0, 9.0).repeat(6, 1) / 3
        return torch.ops.prunepass.selective_scan(x, delta, decay, A, B, C, torch.ones(6))


@pytest.mark.parametrize("tokens", [1, 2, 13, 16])
def test_a_scan_by_doubling_is_the_scan(tmp_path: Path, tokens: int) -> None:
    draw = torch.Generator().manual_seed(tokens)
    x, delta, decay = (torch.rand(2, tokens, 6, generator=draw) * 3 for _ in range(3))
    b, c = (torch.randn(2, tokens, 8, generator=draw) for _ in range(2))
    program = torch.export.export(_Scan(), (x, delta, decay, b, c), strict=False)
    expected = program.module()(x, delta, decay, b, c)
    engine = OnnxBackend(target="tensorrt", opset=17).build(program, tmp_path)
    torch.testing.assert_close(engine(x, delta, decay, b, c)[0], expected, rtol=1e-5, atol=1e-5)
    found = operators(onnx.load(str(tmp_path / "model.onnx")))
    assert not {"Scan", "Loop"} & set(found)


def test_a_state_space_model_without_a_loop(tmp_path: Path) -> None:
    x = pictures(2).float()
    program = capture(small_vim().float(), (x,))
    expected = program.module(check_guards=False)(x)
    engine = OnnxBackend(target="tensorrt", opset=17).build(program, tmp_path)
    torch.testing.assert_close(engine(x)[0], expected, rtol=1e-4, atol=1e-4)
    assert "Scan" not in operators(onnx.load(str(tmp_path / "model.onnx")))
