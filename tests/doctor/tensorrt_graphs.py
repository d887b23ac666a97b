"""Graphs that some TensorRT stumbles over, and their like that it takes."""

from __future__ import annotations

from tests.doctor.makers import CALL, FUNCTION, RELU, SCAN, Example, one, onnx

ATTENTION = """g (float[1, 2, 6, 4] q, float[1, 2, 6, 4] k, float[1, 2, 6, 4] v{more})
    => (float[1, 2, 6, 4] y) {{ y = Attention{attributes}(q, k, v{rest}) }}"""
ATTENTION_PARTS = """g (float[1, 2, 6, 6] a, float[1, 2, 6, 4] v) => (float[1, 2, 6, 4] y)
    { s = Softmax(a) y = MatMul(s, v) }"""
SCATTER = """g (float[4, 3] x, int64[{n}, 3] i, float[{n}, 3] u) => (float[4, 3] y)
    {{ y = ScatterElements<axis = 0{reduction}>(x, i, u) }}"""
SCATTER_ND = """g (float[4, 3] x, int64[2, 1] i, float[2, 3] u) => (float[4, 3] y)
    {{ y = ScatterND{reduction}(x, i, u) }}"""
TOP_K = """g ({kind}[2, {n}] x) => ({kind}[2, {k}] y, int64[2, {k}] i)
    <int64[1] k = {{{k}}}> {{ y, i = TopK(x, k) }}"""


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


def _computed(op: str) -> str:
    """An operator whose second input, an axis, is an input of the graph."""
    return f"g (float[2, 8] x, int64[1] a) => (float y) {{ y = {op}(x, a) }}"


def _stored(op: str) -> str:
    return f"g (float[2, 8] x) => (float y) <int64[1] a = {{1}}> {{ y = {op}(x, a) }}"


POOL = """g (float[1, 3, 8, 8] x) => (float y{more})
    {{ y{more2} = MaxPool<kernel_shape = [2, 2]{a}>(x) }}"""
RESIZE = """g (float[1, 3, 8, 8] x) => (float[1, 3, 4, 4] y) <float[4] s = {{1, 1, 0.5, 0.5}}>
    {{ y = Resize<mode = "{mode}"{antialias}>(x, , s) }}"""
QUANTIZE = """g (float[2, 8] x) => (int8[2, 8] y) <float s = {{0.1}}, int8 z = {{{zero}}}>
    {{ y = QuantizeLinear(x, s, z) }}"""
ONE_HOT = """g (int64[5] x{given}) => (float[5, D] y) <float[2] v = {{0, 1}}{stored}>
    {{ y = OneHot(x, d, v) }}"""
GRID = """g (float{shape} x, float{grid} w) => (float y) {{ y = GridSample(x, w) }}"""
NORM = """g (float[2, 8] x, float[8] s, float[8] b) => (float[2, 8] y{more}) {{
    y{names} = LayerNormalization(x, s, b) }}"""
_NORM_PLAIN = NORM.format(more="", names="")
_NORM_THREE = NORM.format(more=", float[2, 1] m, float[2, 1] d", names=", m, d")

EXAMPLES: dict[str, Example] = {
    "trt-operator": Example(
        "tensorrt==10", onnx(one("BitwiseNot(x)", "int32"), opset=18),
        onnx(one("Not(x)", "bool"), opset=18),
    ),
    "trt-domain": Example(
        "tensorrt==10", onnx(CALL.format(call="other.Blur"), domains=', "other" : 1'), RELU,
    ),
    "trt-function": Example(
        "tensorrt==8.6",
        onnx(CALL.format(call="mine.double_it"), domains=', "mine" : 1', functions=FUNCTION),
        RELU,
    ),
    "trt-opset": Example("tensorrt==8.6", onnx(one("Relu(x)"), opset=18), RELU),
    "trt-layer-norm": Example("tensorrt==8.5", onnx(_NORM_PLAIN), RELU),
    "trt-layer-norm-outputs": Example("tensorrt==10", onnx(_NORM_THREE), onnx(_NORM_PLAIN)),
    "trt-gelu": Example("tensorrt==9.3", onnx(one("Gelu(x)"), opset=20), onnx(one("Erf(x)"))),
    "trt-attention": Example(
        "tensorrt==10.13", onnx(ATTENTION.format(more="", attributes="", rest=""), opset=23),
        onnx(ATTENTION_PARTS),
    ),
    "trt-attention-fused": Example(
        "tensorrt==10.14", onnx(ATTENTION.format(more="", attributes="", rest=""), opset=23),
        onnx(ATTENTION_PARTS),
    ),
    "trt-attention-inputs": Example(
        "tensorrt==11",
        onnx(ATTENTION.format(more="", attributes="<softcap = 30.0>", rest=""), opset=23),
        onnx(ATTENTION_PARTS, opset=23),
    ),
    "trt-reduce-axes-ignored": Example(
        "tensorrt==8.6", onnx(_reduced("input"), opset=18), onnx(_reduced("")),
    ),
    "trt-reduce-axes-computed": Example(
        "tensorrt==10", onnx(_computed("ReduceMean"), opset=18),
        onnx(_stored("ReduceMean"), opset=18),
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
        "tensorrt==10.7",
        onnx("g (float[2, 8] x) => (float y) <int64 a = {1}> { y = CumSum(x, a) }"), RELU,
    ),
    "trt-cumulative-sum-axis": Example(
        "tensorrt==10.7", onnx("g (float[2, 8] x, int64 a) => (float y) { y = CumSum(x, a) }"),
        RELU,
    ),
    "trt-axes-computed": Example(
        "tensorrt==10.6", onnx(_computed("Unsqueeze")), onnx(_stored("Unsqueeze")),
    ),
    "trt-double": Example("tensorrt==11", onnx(one("Relu(x)", "double")), RELU),
    "trt-int64-clamped": Example(
        "tensorrt==8.6",
        onnx("g (int64[8] x) => (int64[8] y) <int64[1] c = {3000000000}> { y = Add(x, c) }"),
        onnx("g (int64[8] x) => (int64[8] y) <int64[1] c = {2000000000}> { y = Add(x, c) }"),
    ),
    "trt-bfloat16": Example(
        "tensorrt==8.6", onnx(one("Relu(x)", "bfloat16")), onnx(one("Relu(x)", "float16")),
    ),
    "trt-type": Example(
        "tensorrt==10", onnx(one("Identity(x)", "int16")), onnx(one("Identity(x)", "int32")),
    ),
    "trt-uint8": Example(
        "tensorrt==10",
        onnx("g (uint8[2, 8] x) => (uint8[4, 8] y) { y = Concat<axis = 0>(x, x) }"),
        onnx("g (uint8[2, 8] x) => (float[4, 8] y) { f = Cast<to = 1>(x) "
             "y = Concat<axis = 0>(f, f) }"),
    ),
    "trt-matmul-integers": Example(
        "tensorrt==10",
        onnx("g (int32[2, 3] a, int32[3, 4] b) => (int32[2, 4] y) { y = MatMul(a, b) }"),
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
        "tensorrt==11", onnx(RESIZE.format(mode="linear", antialias=", antialias = 1"), opset=18),
        onnx(RESIZE.format(mode="linear", antialias=""), opset=18),
    ),
    "trt-resize-cubic": Example(
        "tensorrt==8.6", onnx(RESIZE.format(mode="cubic", antialias="")),
        onnx(RESIZE.format(mode="linear", antialias="")),
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
        "tensorrt==11",
        onnx(GRID.format(shape="[1, 2, 3, 4, 5]", grid="[1, 3, 4, 5, 3]"), opset=20),
        onnx(GRID.format(shape="[1, 2, 4, 5]", grid="[1, 4, 5, 2]"), opset=20),
    ),
    "trt-random-seed": Example(
        "tensorrt==10", onnx("g (float[2, 8] x) => (float[2, 8] y) { "
                             "r = RandomNormalLike<seed = 1.0>(x) y = Add(x, r) }"), RELU,
    ),
    "trt-axes-8": Example(
        "tensorrt==11", onnx(one("Relu(x)", shape="1, 1, 1, 1, 1, 1, 1, 2, 3")),
        onnx(one("Relu(x)", shape="1, 1, 1, 1, 1, 1, 2, 3")),
    ),
    "trt-volume": Example(
        "tensorrt==11", onnx(top_k(4, 1_200_000_000)), onnx(top_k(4, 1_000_000)),
    ),
}  # fmt: skip
