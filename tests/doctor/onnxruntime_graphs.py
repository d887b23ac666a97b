"""Graphs that ONNX Runtime does not take, and their like that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.doctor.makers import CALL, RELU, SCAN, Example, one, onnx


def external(location: str) -> Callable[[], Any]:
    """A graph whose weight lies in another file."""

    def make() -> Any:
        from onnx import TensorProto

        model = onnx(
            "g (float[2, 8] x) => (float[2, 8] y) <float[8] w = {0,0,0,0,0,0,0,0}>{ y = Add(x, w) }"
        )()
        tensor = model.graph.initializer[0]
        for field in ("float_data", "raw_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "32")):
            tensor.external_data.add(key=key, value=value)
        return model

    return make


EXAMPLES: dict[str, Example] = {
    "ort-opset": Example("onnxruntime==1.22", onnx(one("Relu(x)"), opset=23), RELU),
    "ort-ir-version": Example("onnxruntime==1.20", onnx(one("Relu(x)"), ir=11), RELU),
    "ort-domain": Example(
        "onnxruntime==1.31", onnx(CALL.format(call="other.Blur"), domains=', "other" : 1'),
        onnx(CALL.format(call="com.microsoft.FastGelu"), domains=', "com.microsoft" : 1'),
    ),
    "ort-own-operator": Example(
        "onnxruntime==1.31",
        onnx("g (float[1, 8] x, float[1, 8] s, float[4, 8] w) => (float[1, 4] y) "
             "{ y = prunepass.GatedLinear(x, s, w) }", domains=', "prunepass" : 1'),
        onnx("g (float[1, 8] x, float[8, 4] w) => (float[1, 4] y) { y = MatMul(x, w) }"),
    ),
    "ort-operator": Example(
        "onnxruntime==1.31", onnx(one("Gelu(x)"), opset=17), onnx(one("Gelu(x)"), opset=20),
    ),
    "ort-kernel": Example(
        "onnxruntime==1.31",
        onnx("g (float[1, 3, 8, 8] x) => (float y) { y = GlobalLpPool<p = 2>(x) }", opset=22),
        onnx("g (float[1, 3, 8, 8] x) => (float y) { y = GlobalAveragePool(x) }", opset=22),
    ),
    "ort-kernel-type": Example(
        "onnxruntime==1.31", onnx(one("Erf(x)", "double")), onnx(one("Erf(x)")),
    ),
    "ort-float16": Example(
        "onnxruntime==1.31", onnx(one("Erf(x)", "float16")), onnx(one("Identity(x)", "float16")),
    ),
    "ort-scan": Example("onnxruntime==1.31", onnx(SCAN), RELU),
    "ort-weights-outside": Example("onnxruntime==1.31", external("../weights"), RELU),
    "ort-weights-missing": Example("onnxruntime==1.31", external("weights"), RELU),
}  # fmt: skip
