"""What becomes of a program on its ways out: to ONNX, to torch-tensorrt, into a count of FLOPs.

`code` of torch-tensorrt is github.com/pytorch/TensorRT at v2.8.0 to v2.13.0,
py/torch_tensorrt/dynamo/conversion/aten_ops_converters.py and lowering/_decompositions.py.
"""

from __future__ import annotations

from prunepass.doctor.conditions import always, attribute, typed
from prunepass.doctor.rule import Place, Rule

_K = 3840
_UNROLLED = 64
"""Source elements from which on an unrolled scatter is worth a word."""
_TORCHS = ("aten", "prims", "prim", "higher_order", "torchvision", "quantized_decomposed")
_OURS = ("prunepass",)


def _dim(place: Place) -> int:
    dim = place.node.attributes.get("dim", -1)
    return dim if isinstance(dim, int) else -1


def _sorted(place: Place) -> str | None:
    value = place.node.input(0)
    if value is None or not value.shape:
        return None
    size = value.shape[_dim(place)]
    if size is None:
        return "the axis that is sorted has no fixed size"
    return f"{size} elements are sorted" if size > _K else None


def _top_k(place: Place) -> str | None:
    k = place.node.attributes.get("k")
    if not isinstance(k, int):
        return "k is computed"
    return f"k = {k}" if k > _K else None


def _dynamic(place: Place) -> str | None:
    for value in place.node.values:
        if value.dynamic:
            return f"{value.name} has free sizes"
    return None


def _unrolled(place: Place) -> str | None:
    inputs = [value for value in place.node.inputs if value is not None]
    if len(inputs) < 2 or inputs[-1].shape is None or not inputs[-1].shape:
        return None
    size = inputs[-1].shape[_dim(place)]
    if size is None or size <= _UNROLLED:
        return None
    return f"{size} source elements"


def _boolean(place: Place) -> str | None:
    for value in place.node.inputs[1:]:
        if value is not None and value.dtype == "bool":
            return f"{value.name} is a mask"
    return None


def _foreign(place: Place) -> str | None:
    domain = place.node.domain
    return None if domain in (*_TORCHS, *_OURS) else f"an operation of {domain!r}"


def _unconverted(place: Place) -> str | None:
    domain = place.node.domain
    return None if domain in _TORCHS else f"an operation of {domain!r}"


RULES: tuple[Rule, ...] = (
    Rule(
        name="onnx-scatter-mean", target="onnxscript", operators=("aten.scatter_reduce",),
        condition=attribute("reduce", lambda v: v == "mean"), effect="wrong",
        what="a mean becomes `reduction=none`, without a word: the last element stays",
        mend="sum and count, then divide", source="onnxscript 0.7.2, torch_lib/ops/core.py, "
        "aten_scatter_reduce: 'mean': 'none'; run with torch 2.15",
    ),
    Rule(
        name="onnx-custom-operation", target="onnxscript", operators=("*",), condition=_foreign,
        effect="fails", what="the exporter knows no translation of it",
        mend="custom_translation_table of torch.onnx.export, or the operation in torch's own",
        source="docs.pytorch.org/docs/stable/onnx.html, custom_translation_table",
    ),
    Rule(
        name="onnx-data-dependent", target="onnxscript",
        operators=("aten.nonzero", "aten.masked_select"),
        condition=always("its output is as long as the data say"), effect="slow",
        what="it becomes NonZero, and nothing behind it has a fixed size",
        mend="a fixed number of tokens: topk with a constant k, then gather",
        source="onnxscript 0.7.2, torch_lib/ops/core.py; field: github.com/pytorch/pytorch/"
        "issues/143222",
    ),
    Rule(
        name="torch-trt-top-k", target="torch_tensorrt", operators=("aten.topk",),
        condition=_top_k, effect="falls back",
        what="TensorRT selects at most 3840 at a number fixed beforehand; PyTorch runs the rest",
        mend="select the smaller side, kept or dropped; a constant k",
        source="code: topk_validator; github.com/pytorch/TensorRT/issues/3790",
    ),
    Rule(
        name="torch-trt-sort", target="torch_tensorrt", operators=("aten.sort", "aten.argsort"),
        condition=_sorted, effect="falls back",
        what="a sort is a selection of all: above 3840 elements PyTorch runs it",
        mend="topk of what is needed",
        source="code: sort_validator and topk_sort_validator",
    ),
    Rule(
        name="torch-trt-gather", target="torch_tensorrt", operators=("aten.gather",),
        condition=_dynamic, effect="falls back",
        what="its converter takes fixed sizes alone; PyTorch runs it",
        mend="index_select or x[index], which take free sizes; or a fixed batch",
        source="code: aten.gather without supports_dynamic_shapes, v2.8.0 to v2.13.0",
    ),
    Rule(
        name="torch-trt-scatter", target="torch_tensorrt", versions="<2.11",
        operators=("aten.scatter",), condition=_dynamic, effect="falls back",
        what="its converter takes fixed sizes alone; PyTorch runs it",
        mend="a fixed batch, or torch-tensorrt 2.11",
        source="code: aten.scatter has supports_dynamic_shapes from v2.11.0 on",
    ),
    Rule(
        name="torch-trt-scatter-unrolled", target="torch_tensorrt",
        operators=("aten.scatter_add", "aten.scatter_reduce"), condition=_unrolled, effect="slow",
        what="it is unrolled into several nodes for each source element",
        mend="a one-hot matrix and matmul in its place",
        source="code: scatter_add_decomposition and scatter_reduce_decomposition",
    ),
    Rule(
        name="torch-trt-scatter-self", target="torch_tensorrt",
        operators=("aten.scatter_reduce",), effect="fails",
        condition=attribute("include_self", lambda v: v is False),
        what="the decomposition raises an AssertionError", mend="include_self=True on zeros",
        source="code: `include_self False for scatter reduce not yet supported`",
    ),
    Rule(
        name="torch-trt-data-dependent", target="torch_tensorrt",
        operators=("aten.nonzero", "aten.masked_select"),
        condition=always("its output is as long as the data say"), effect="falls back",
        what="it needs an output allocator, and cuts the engine in parts",
        mend="a fixed number of tokens: topk with a constant k, then index_select",
        source="code: aten.nonzero with requires_output_allocator; github.com/pytorch/TensorRT/"
        "issues/2516",
    ),
    Rule(
        name="torch-trt-mask", target="torch_tensorrt", operators=("aten.index",),
        condition=_boolean, effect="falls back",
        what="a mask as an index is a nonzero: it needs an output allocator",
        mend="a fixed number of tokens: topk with a constant k, then index_select",
        source="code: index_has_bool_indices",
    ),
    Rule(
        name="torch-trt-double", target="torch_tensorrt", operators=(),
        condition=typed(("float64",)), effect="falls back",
        what="float64 has no place in TensorRT unless truncate_double is set",
        mend="the model in float32", source="code: _defaults.TRUNCATE_DOUBLE = False",
    ),
    Rule(
        name="torch-trt-operation", target="torch_tensorrt", operators=("*",),
        condition=_unconverted, effect="falls back",
        what="it has no converter; PyTorch runs it, and a full compilation is refused",
        mend="the operation in torch's own, or a converter of its own",
        source="docs.pytorch.org/TensorRT, dynamo converters; code",
    ),
    Rule(
        name="flops-of-attention", target="flop_counter", versions="<2.14",
        operators=("aten.scaled_dot_product_attention",),
        condition=always("attention on a processor"), effect="wrong",
        what="FlopCounterMode counts 0 for it on a processor",
        mend="prunepass inspect counts it; or the math kernel of attention",
        source="github.com/pytorch/pytorch/issues/195460",
    ),
)  # fmt: skip
