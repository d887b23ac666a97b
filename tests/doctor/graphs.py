"""A graph that falls into each trap, and one beside it that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram


@dataclass(frozen=True)
class Example:
    """Two graphs for one rule.

    Attributes:
        target: Where the rule holds.
        bad: Makes the graph that it has to find.
        good: Makes the graph that it must leave alone.
    """

    target: str
    bad: Callable[[], Any]
    good: Callable[[], Any]


def onnx(
    text: str, *, opset: int = 17, ir: int = 8, domains: str = "", functions: str = ""
) -> Callable[[], Any]:
    """What makes an `onnx.ModelProto` of a graph in ONNX's text format."""

    def make() -> Any:
        from onnx import parser

        imports = f'"" : {opset}' + domains
        return parser.parse_model(
            f"<ir_version: {ir}, opset_import: [{imports}]>\n{text}\n{functions}"
        )

    return make


def program(
    function: Callable[..., Tensor], *inputs: Tensor, free: bool = False
) -> Callable[[], ExportedProgram]:
    """What makes the program of a function; `free` leaves axis 0 of its first input free."""

    class Module(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return function(*args)

    def make() -> ExportedProgram:
        shapes = (({0: Dim.AUTO}, *({} for _ in inputs[1:])),) if free else None
        return torch.export.export(Module(), inputs, dynamic_shapes=shapes, strict=False)

    return make


@torch.library.custom_op("prunepass_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An operation that nobody else knows."""
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


RELU = onnx("g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }")
ATTENTION = """g (float[1, 2, 6, 4] q, float[1, 2, 6, 4] k, float[1, 2, 6, 4] v{more})
    => (float[1, 2, 6, 4] y) {{ y = Attention{attributes}(q, k, v{rest}) }}"""
SCATTER = """g (float[4, 3] x, int64[{n}, 3] i, float[{n}, 3] u) => (float[4, 3] y)
    {{ y = ScatterElements<axis = 0{reduction}>(x, i, u) }}"""
SCATTER_ND = """g (float[4, 3] x, int64[2, 1] i, float[2, 3] u) => (float[4, 3] y)
    {{ y = ScatterND{reduction}(x, i, u) }}"""
TOP_K = """g ({kind}[2, {n}] x) => ({kind}[2, {k}] y, int64[2, {k}] i)
    <int64[1] k = {{{k}}}> {{ y, i = TopK(x, k) }}"""
FUNCTION = """<domain: "mine", opset_import: ["" : 17]>
    double_it (x) => (y) { y = Add(x, x) }"""
_X, _INDEX = torch.randn(4, 9), torch.zeros(4, 5, dtype=torch.int64)


def _one(node: str, kind: str = "float", shape: str = "2, 8", out: str = "") -> str:
    """A graph of one node from `x` to `y`, of one type."""
    return f"g ({kind}[{shape}] x) => ({out or kind}[{shape}] y) {{ y = {node} }}"


def scatter(n: int, reduction: str = "") -> str:
    """A ScatterElements of n rows into four."""
    return SCATTER.format(n=n, reduction=f', reduction = "{reduction}"' if reduction else "")


def scatter_nd(reduction: str = "") -> str:
    """A ScatterND."""
    return SCATTER_ND.format(reduction=f'<reduction = "{reduction}">' if reduction else "")


def top_k(k: int, n: int, kind: str = "float") -> str:
    """A TopK with a stored k."""
    return TOP_K.format(k=k, n=n, kind=kind)


def _reduced(axes: str) -> str:
    head = "g (float[2, 8] x) => (float[2, 1] y)"
    return f"{head} {{ a = Constant<value_ints = [1]>() y = ReduceMean(x, a) }}" if axes else (
        f"{head} {{ y = ReduceMean<axes = [1]>(x) }}"
    )  # fmt: skip


def _computed(op: str, before: str = "y: float[2, 1]", more: str = "") -> str:
    """An operator whose second input, an axis, is an input of the graph."""
    return f"g (float[2, 8] x, int64[1] a) => (float y) {{ y = {op}(x, a{more}) }}"


def _stored(op: str, axis: int = 1, more: str = "") -> str:
    return f"g (float[2, 8] x) => (float y) <int64[1] a = {{{axis}}}> {{ y = {op}(x, a{more}) }}"


SCAN = """g (float[3] start, float[5, 3] x) => (float[3] last, float[5, 3] y) {
    last, y = Scan<num_scan_inputs = 1, body = step (float[3] s, float[3] e)
        => (float[3] t, float[3] z) { t = Add(s, e) z = Identity(t) }>(start, x) }"""
POOL = "g (float[1, 3, 8, 8] x) => (float y{more}) {{ y{more2} = MaxPool<kernel_shape = [2, 2]{a}>(x) }}"
RESIZE = """g (float[1, 3, 8, 8] x) => (float[1, 3, 4, 4] y) <float[4] s = {{1, 1, 0.5, 0.5}}>
    {{ y = Resize<mode = "linear"{antialias}>(x, , s) }}"""
QUANTIZE = """g (float[2, 8] x) => (int8[2, 8] y) <float s = {{0.1}}, int8 z = {{{zero}}}>
    {{ y = QuantizeLinear(x, s, z) }}"""
ONE_HOT = """g (int64[5] x{given}) => (float[5, D] y) <float[2] v = {{0, 1}}{stored}>
    {{ y = OneHot(x, d, v) }}"""
GRID = """g (float{shape} x, float{grid} w) => (float y) {{ y = GridSample(x, w) }}"""
NORM = """g (float[2, 8] x, float[8] s, float[8] b) => (float[2, 8] y{more}) {{
    y{names} = LayerNormalization(x, s, b) }}"""
EXTERNAL = """g (float[2, 8] x) => (float[2, 8] y) {{ y = Add(x, w) }}"""


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


_NORM_PLAIN = NORM.format(more="", names="")
_NORM_THREE = NORM.format(more=", float[2, 1] m, float[2, 1] d", names=", m, d")
_MIXED = "g (float[2, 8] x) => (float[2, 8] y) {{ y = {call}(x) }}"

EXAMPLES: dict[str, Example] = {
    # ONNX Runtime
    "ort-opset": Example("onnxruntime==1.22", onnx(_one("Relu(x)"), opset=23), RELU),
    "ort-ir-version": Example("onnxruntime==1.20", onnx(_one("Relu(x)"), ir=11), RELU),
    "ort-domain": Example(
        "onnxruntime==1.31", onnx(_MIXED.format(call="other.Blur"), domains=', "other" : 1'),
        onnx(_MIXED.format(call="com.microsoft.FastGelu"), domains=', "com.microsoft" : 1'),
    ),
    "ort-own-operator": Example(
        "onnxruntime==1.31",
        onnx("g (float[1, 8] x, float[1, 8] s, float[4, 8] w) => (float[1, 4] y) "
             "{ y = prunepass.GatedLinear(x, s, w) }", domains=', "prunepass" : 1'),
        onnx("g (float[1, 8] x, float[8, 4] w) => (float[1, 4] y) { y = MatMul(x, w) }"),
    ),
    "ort-operator": Example(
        "onnxruntime==1.31", onnx(_one("Gelu(x)"), opset=17), onnx(_one("Gelu(x)"), opset=20),
    ),
    "ort-kernel": Example(
        "onnxruntime==1.31",
        onnx("g (float[1, 3, 8, 8] x) => (float y) { y = GlobalLpPool<p = 2>(x) }", opset=22),
        onnx("g (float[1, 3, 8, 8] x) => (float y) { y = GlobalAveragePool(x) }", opset=22),
    ),
    "ort-kernel-type": Example(
        "onnxruntime==1.31", onnx(_one("Erf(x)", "double")), onnx(_one("Erf(x)")),
    ),
    "ort-float16": Example(
        "onnxruntime==1.31", onnx(_one("Erf(x)", "float16")), onnx(_one("Identity(x)", "float16")),
    ),
    "ort-scan": Example("onnxruntime==1.31", onnx(SCAN), RELU),
    "ort-weights-outside": Example("onnxruntime==1.31", external("../weights"), RELU),
    "ort-weights-missing": Example("onnxruntime==1.31", external("weights"), RELU),
    # TensorRT
    "trt-operator": Example(
        "tensorrt==10", onnx(_one("BitwiseNot(x)", "int32"), opset=18),
        onnx(_one("Not(x)", "bool"), opset=18),
    ),
    "trt-domain": Example(
        "tensorrt==10", onnx(_MIXED.format(call="other.Blur"), domains=', "other" : 1'), RELU,
    ),
    "trt-function": Example(
        "tensorrt==8.6",
        onnx(_MIXED.format(call="mine.double_it"), domains=', "mine" : 1', functions=FUNCTION),
        RELU,
    ),
    "trt-opset": Example("tensorrt==8.6", onnx(_one("Relu(x)"), opset=18), RELU),
    "trt-layer-norm": Example("tensorrt==8.5", onnx(_NORM_PLAIN), RELU),
    "trt-layer-norm-outputs": Example("tensorrt==10", onnx(_NORM_THREE), onnx(_NORM_PLAIN)),
    "trt-gelu": Example("tensorrt==9.3", onnx(_one("Gelu(x)"), opset=20), onnx(_one("Erf(x)"))),
    "trt-attention": Example(
        "tensorrt==10.13", onnx(ATTENTION.format(more="", attributes="", rest=""), opset=23),
        onnx("g (float[1, 2, 6, 6] a, float[1, 2, 6, 4] v) => (float[1, 2, 6, 4] y) "
             "{ s = Softmax(a) y = MatMul(s, v) }"),
    ),
    "trt-attention-inputs": Example(
        "tensorrt==11",
        onnx(ATTENTION.format(more="", attributes="<softcap = 30.0>", rest=""), opset=23),
        onnx(ATTENTION.format(more="", attributes="", rest=""), opset=23),
    ),
    "trt-reduce-axes-ignored": Example(
        "tensorrt==8.6", onnx(_reduced("input"), opset=18), onnx(_reduced("")),
    ),
    "trt-reduce-axes-computed": Example(
        "tensorrt==10", onnx(_computed("ReduceMean"), opset=18), onnx(_stored("ReduceMean"), opset=18),
    ),
    "trt-reduce-sum-axes": Example(
        "tensorrt==8.6", onnx(_computed("ReduceSum")), onnx(_stored("ReduceSum")),
    ),
    "trt-scatter-reduction-ignored": Example(
        "tensorrt==8.6", onnx(scatter(2, "add")), onnx(scatter(2)),
    ),
    "trt-scatter-plugin": Example("tensorrt==10", onnx(scatter(2, "add")), onnx(scatter(2))),
    "trt-scatter-more-indices": Example("tensorrt==8.6", onnx(scatter(6)), onnx(scatter(4))),
    "trt-scatter-nd-attribute": Example(
        "tensorrt==10.7", onnx(scatter_nd("none")), onnx(scatter_nd()),
    ),
    "trt-scatter-nd-reduction": Example(
        "tensorrt==11", onnx(scatter_nd("add")), onnx(scatter_nd("none")),
    ),
    "trt-top-k": Example("tensorrt==11", onnx(top_k(4096, 4097)), onnx(top_k(3840, 4097))),
    "trt-top-k-computed": Example(
        "tensorrt==8.5",
        onnx("g (float[2, 8] x, int64[1] k) => (float y, int64 i) { y, i = TopK(x, k) }"),
        onnx(top_k(4, 8)),
    ),
    "trt-top-k-integers": Example(
        "tensorrt==8.5", onnx(top_k(4, 8, "int32")), onnx(top_k(4, 8)),
    ),
    "trt-data-dependent": Example(
        "tensorrt==10", onnx("g (float[2, 8] x) => (int64[2, N] y) { y = NonZero(x) }"), RELU,
    ),
    "trt-loop": Example("tensorrt==10", onnx(SCAN), RELU),
    "trt-cumulative-sum": Example(
        "tensorrt==10.7", onnx("g (float[2, 8] x) => (float y) <int64 a = {1}> { y = CumSum(x, a) }"),
        RELU,
    ),
    "trt-cumulative-sum-axis": Example(
        "tensorrt==10.7", onnx("g (float[2, 8] x, int64 a) => (float y) { y = CumSum(x, a) }"),
        RELU,
    ),
    "trt-axes-computed": Example(
        "tensorrt==10.6", onnx(_computed("Unsqueeze")), onnx(_stored("Unsqueeze")),
    ),
    "trt-double": Example("tensorrt==11", onnx(_one("Relu(x)", "double")), RELU),
    "trt-int64-clamped": Example(
        "tensorrt==8.6",
        onnx("g (int64[8] x) => (int64[8] y) <int64[1] c = {3000000000}> { y = Add(x, c) }"),
        onnx("g (int64[8] x) => (int64[8] y) <int64[1] c = {2000000000}> { y = Add(x, c) }"),
    ),
    "trt-bfloat16": Example(
        "tensorrt==8.6", onnx(_one("Relu(x)", "bfloat16")), onnx(_one("Relu(x)", "float16")),
    ),
    "trt-type": Example(
        "tensorrt==10", onnx(_one("Identity(x)", "int16")), onnx(_one("Identity(x)", "int32")),
    ),
    "trt-uint8": Example(
        "tensorrt==10",
        onnx("g (uint8[2, 8] x) => (uint8[4, 8] y) { y = Concat<axis = 0>(x, x) }"),
        onnx("g (uint8[2, 8] x) => (float[4, 8] y) { f = Cast<to = 1>(x) "
             "y = Concat<axis = 0>(f, f) }"),
    ),
    "trt-matmul-integers": Example(
        "tensorrt==10", onnx("g (int32[2, 3] a, int32[3, 4] b) => (int32[2, 4] y) { y = MatMul(a, b) }"),
        onnx("g (float[2, 3] a, float[3, 4] b) => (float[2, 4] y) { y = MatMul(a, b) }"),
    ),
    "trt-reduce-bool": Example(
        "tensorrt==10.3",
        onnx("g (bool[2, 8] x) => (bool y) <int64[1] a = {1}> { y = ReduceMax(x, a) }", opset=20),
        onnx("g (int32[2, 8] x) => (int32 y) <int64[1] a = {1}> { y = ReduceMax(x, a) }", opset=20),
    ),
    "trt-power-integers": Example(
        "tensorrt==10", onnx("g (int64[8] x) => (int64[8] y) <int64 e = {2}> { y = Pow(x, e) }"),
        onnx("g (float[8] x) => (float[8] y) <float e = {2}> { y = Pow(x, e) }"),
    ),
    "trt-einsum": Example(
        "tensorrt==8.6",
        onnx('g (float[2, 3, 4] a, float[2, 4, 5] b) => (float[2, 3, 5] y) '
             '{ y = Einsum<equation = "...ij,...jk->...ik">(a, b) }'),
        onnx('g (float[2, 3, 4] a, float[2, 4, 5] b) => (float[2, 3, 5] y) '
             '{ y = Einsum<equation = "bij,bjk->bik">(a, b) }'),
    ),
    "trt-resize-antialias": Example(
        "tensorrt==11", onnx(RESIZE.format(antialias=", antialias = 1"), opset=18),
        onnx(RESIZE.format(antialias=""), opset=18),
    ),
    "trt-zero-point": Example(
        "tensorrt==10", onnx(QUANTIZE.format(zero=3)), onnx(QUANTIZE.format(zero=0)),
    ),
    "trt-pool-indices": Example(
        "tensorrt==10", onnx(POOL.format(more=", int64 i", more2=", i", a="")),
        onnx(POOL.format(more="", more2="", a="")),
    ),
    "trt-pool-dilation": Example(
        "tensorrt==10", onnx(POOL.format(more="", more2="", a=", dilations = [2, 2]")),
        onnx(POOL.format(more="", more2="", a=", dilations = [1, 1]")),
    ),
    "trt-eye-like": Example(
        "tensorrt==10", onnx("g (float[N, 8] x) => (float[N, 8] y) { y = EyeLike(x) }"),
        onnx("g (float[4, 8] x) => (float[4, 8] y) { y = EyeLike(x) }"),
    ),
    "trt-one-hot": Example(
        "tensorrt==10", onnx(ONE_HOT.format(given=", int64 d", stored="")),
        onnx(ONE_HOT.format(given="", stored=", int64 d = {7}")),
    ),
    "trt-grid-sample": Example(
        "tensorrt==11", onnx(GRID.format(shape="[1, 2, 3, 4, 5]", grid="[1, 3, 4, 5, 3]"), opset=20),
        onnx(GRID.format(shape="[1, 2, 4, 5]", grid="[1, 4, 5, 2]"), opset=20),
    ),
    "trt-random-seed": Example(
        "tensorrt==10", onnx("g (float[2, 8] x) => (float[2, 8] y) { "
                             "r = RandomNormalLike<seed = 1.0>(x) y = Add(x, r) }"), RELU,
    ),
    "trt-axes-8": Example(
        "tensorrt==11", onnx(_one("Relu(x)", shape="1, 1, 1, 1, 1, 1, 1, 2, 3")),
        onnx(_one("Relu(x)", shape="1, 1, 1, 1, 1, 1, 2, 3")),
    ),
    "trt-volume": Example(
        "tensorrt==11", onnx(top_k(4, 1_200_000_000)), onnx(top_k(4, 1_000_000)),
    ),
    # Programs
    "onnx-scatter-mean": Example(
        "onnxscript==0.7",
        program(lambda x, i: x.scatter_reduce(1, i, x[:, :5], "mean"), _X, _INDEX),
        program(lambda x, i: x.scatter_reduce(1, i, x[:, :5], "sum"), _X, _INDEX),
    ),
    "onnx-custom-operation": Example(
        "onnxscript==0.7", program(lambda x: twice(x), _X), program(lambda x: x * 2, _X),
    ),
    "onnx-data-dependent": Example(
        "onnxscript==0.7", program(lambda x: x.nonzero(), _X), program(lambda x: x > 0, _X),
    ),
    "torch-trt-top-k": Example(
        "torch_tensorrt==2.13", program(lambda x: x.topk(4000)[0], torch.randn(2, 4100)),
        program(lambda x: x.topk(100)[0], torch.randn(2, 4100)),
    ),
    "torch-trt-sort": Example(
        "torch_tensorrt==2.13", program(lambda x: x.argsort(1), torch.randn(2, 4100)),
        program(lambda x: x.argsort(1), torch.randn(2, 410)),
    ),
    "torch-trt-gather": Example(
        "torch_tensorrt==2.13",
        program(lambda x, i: x.gather(1, i.expand(x.shape[0], -1)), _X, _INDEX[:1], free=True),
        program(lambda x, i: x.gather(1, i), _X, _INDEX),
    ),
    "torch-trt-scatter": Example(
        "torch_tensorrt==2.10",
        program(lambda x, i: x.scatter(1, i.expand(x.shape[0], -1), 1.0), _X, _INDEX[:1], free=True),
        program(lambda x, i: x.scatter(1, i, 1.0), _X, _INDEX),
    ),
    "torch-trt-scatter-unrolled": Example(
        "torch_tensorrt==2.13",
        program(lambda x, i: x.scatter_add(1, i, x[:, :90]), torch.randn(4, 99),
                torch.zeros(4, 90, dtype=torch.int64)),
        program(lambda x, i: x.scatter_add(1, i, x[:, :5]), _X, _INDEX),
    ),
    "torch-trt-scatter-self": Example(
        "torch_tensorrt==2.13",
        program(lambda x, i: x.scatter_reduce(1, i, x[:, :5], "amax", include_self=False), _X, _INDEX),
        program(lambda x, i: x.scatter_reduce(1, i, x[:, :5], "amax"), _X, _INDEX),
    ),
    "torch-trt-data-dependent": Example(
        "torch_tensorrt==2.13", program(lambda x: x.nonzero(), _X), program(lambda x: x > 0, _X),
    ),
    "torch-trt-mask": Example(
        "torch_tensorrt==2.13", program(lambda x: x[x[:, 0] > 0], _X),
        program(lambda x, i: x[i[0]], _X, _INDEX % 4),
    ),
    "torch-trt-double": Example(
        "torch_tensorrt==2.13", program(lambda x: x * 2, _X.double()), program(lambda x: x * 2, _X),
    ),
    "torch-trt-operation": Example(
        "torch_tensorrt==2.13", program(lambda x: twice(x), _X), program(lambda x: x * 2, _X),
    ),
    "flops-of-attention": Example(
        "flop_counter==2.13",
        program(lambda x: nn.functional.scaled_dot_product_attention(x, x, x), torch.randn(1, 2, 6, 4)),
        program(lambda x: (x @ x.mT).softmax(-1) @ x, torch.randn(1, 2, 6, 4)),
    ),
}  # fmt: skip
