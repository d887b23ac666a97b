"""Operators that TensorRT does not have, or has in another sense than ONNX.

`code` in a source is github.com/onnx/onnx-tensorrt at the branches 8.5-GA, 8.6-GA, 9.0-GA to 9.3,
10.0-GA and 10.1-GA, read for what each importer checks and ignores; `documents` is its
docs/operators.md at 8.5-GA to 10.1-GA, 10.15 and 11.1; `changes` is CHANGELOG.md of
github.com/NVIDIA/TensorRT.
"""

from __future__ import annotations

from packaging.version import Version

from prunepass.doctor.conditions import (
    always,
    attribute,
    attribute_given,
    both,
    input_computed,
    input_given,
    number_above,
    outputs_above,
    typed,
)
from prunepass.doctor.rule import Place, Rule
from prunepass.doctor.tensorrt_operators import IMPORTERS, OPSETS

REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
              "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")  # fmt: skip
_SPELLED_OUT = ("LayerNormalization", "Gelu", "Attention")
"""Operators with rules of their own that say how they are written out."""
_K = 3840


def _no_importer(place: Place) -> str | None:
    node = place.node
    if node.op in _SPELLED_OUT or node.domain not in ("", "ai.onnx.ml") or node.op in IMPORTERS:
        since = IMPORTERS.get(node.op)
        if since is None or node.op in _SPELLED_OUT or Version(since) <= place.target.version:
            return None
        return f"{node.op} is read from {since} on"
    return f"{node.op} is read by no version"


def _foreign(place: Place) -> str | None:
    node = place.node
    if node.domain in ("", "ai.onnx.ml") or node.op in IMPORTERS or "TRT" in node.op:
        return None
    return f"an operator of the domain {node.domain!r}"


def _functions(place: Place) -> str | None:
    for (domain, name), caller in place.view.functions.items():
        return f"{caller} calls {domain}::{name}"
    return None


def _opset(place: Place) -> str | None:
    known = [v for v in OPSETS if Version(v) <= place.target.version]
    newest, found = OPSETS[known[-1]], place.view.opsets.get("", 0)
    if found <= newest:
        return None
    return f"opset {found}; the documents of {known[-1]} name opsets up to {newest}"


def _more_indices(place: Place) -> str | None:
    data, indices = place.node.input(0), place.node.input(1)
    if data is None or indices is None or data.shape is None or indices.shape is None:
        return None
    for have, want in zip(data.shape, indices.shape, strict=False):
        if have is not None and want is not None and want > have:
            return f"{want} indices into {have} places of one axis"
    return None


def _no_attention(place: Place) -> str | None:
    node = place.node
    for name in ("softcap", "qk_matmul_output_mode"):
        if node.attributes.get(name):
            return f"{name} = {node.attributes[name]}"
    for number, called in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if node.input(number) is not None:
            return f"{called} is an input"
    for number in (0, 1, 2):
        value = node.input(number)
        if value is not None and value.shape is not None and len(value.shape) != 4:
            return f"{value.name} has {len(value.shape)} axes"
    return outputs_above(1)(place)


RULES: tuple[Rule, ...] = (
    Rule(
        name="trt-operator", target="tensorrt", operators=("*",), condition=_no_importer,
        effect="fails",
        what="the parser has no importer for it and asks for a plugin of that name",
        mend="export at another opset, or write it with operators of docs/operators.md",
        source="code: ModelImporter looks operators up by name; documents; changes",
    ),
    Rule(
        name="trt-domain", target="tensorrt", operators=("*",), condition=_foreign, effect="fails",
        what="only a plugin of that name could run it",
        mend="compile with --backend tensorrt, which writes sparse products and scans of ours in "
        "ONNX's own operators",
        source="code: ModelImporter, FallbackPluginImporter",
    ),
    Rule(
        name="trt-function", target="tensorrt", versions="<9", operators=(), condition=_functions,
        effect="fails", what="functions that a file defines are not read",
        mend="write functions out: onnx.inliner.inline_local_functions(model)",
        source="code: LocalFunctionImporter is in 9.0-GA and not in 8.6-GA",
    ),
    Rule(
        name="trt-opset", target="tensorrt", operators=(), condition=_opset, effect="untested",
        what="the parser reads it as far as it knows the operators, without a promise",
        mend="export at an opset that its documents name; 17 serves all versions",
        source="documents, first paragraph; release notes of TensorRT 11.5",
    ),
    Rule(
        name="trt-layer-norm", target="tensorrt", versions="<8.6",
        operators=("LayerNormalization",), condition=always("LayerNormalization"), effect="fails",
        what="the parser has no importer for it",
        mend="write it as ReduceMean, Sub, Mul and Sqrt",
        source="documents at 8.5-GA: N; code: the importer is in 8.6-GA",
    ),
    Rule(
        name="trt-layer-norm-outputs", target="tensorrt", versions=">=8.6",
        operators=("LayerNormalization",), condition=outputs_above(1), effect="fails",
        what="only the first output is supported", mend="compute mean and deviation beside it",
        source="documents at 10.0-GA, LayerNormalization",
    ),
    Rule(
        name="trt-gelu", target="tensorrt", versions="<10", operators=("Gelu",),
        condition=always("Gelu"), effect="fails", what="the parser has no importer for it",
        mend="export at opset 19 or lower, where it comes as Erf",
        source="code: the importer is in 10.0-GA and not in 9.3",
    ),
    Rule(
        name="trt-attention", target="tensorrt", versions="<10.14", operators=("Attention",),
        condition=always("Attention"), effect="fails", what="the parser has no importer for it",
        mend="export at opset 22 or lower, where it comes as MatMul and Softmax; with --backend "
        "tensorrt it does so at every opset",
        source="changes, 10.14, and those of onnx-tensorrt release/10.14-GA: `Added support "
        "for the Attention operator`",
    ),
    Rule(
        name="trt-attention-fused", target="tensorrt", versions=">=10.14",
        operators=("Attention",), effect="untested",
        condition=attribute("TRT_decomposable", lambda v: not v, default=0),
        what="it becomes one fused kernel or nothing: where there is none for its type and its "
        "channels of a head, the build fails",
        mend="export at opset 22 or lower, where it comes as MatMul and Softmax; with --backend "
        "tensorrt it does so at every opset",
        source="IAttention::setDecomposable in NVIDIA's API documents (not decomposable by "
        "default); code: importAttention; github.com/NVIDIA/TensorRT/issues/4705",
    ),
    Rule(
        name="trt-attention-inputs", target="tensorrt", versions=">=10.14",
        operators=("Attention",), condition=_no_attention, effect="fails",
        what="tensors of 4 axes alone are read, without a cache, a cap or further outputs",
        mend="hand over [B, H, T, D] and join the cache before it",
        source="documents at 11.1, Attention",
    ),
    Rule(
        name="trt-reduce-axes-ignored", target="tensorrt", versions="<10", operators=REDUCTIONS,
        condition=input_given(1, "axes"), effect="wrong",
        what="axes that are an input are not read: it reduces over all axes",
        mend="export at opset 17, where axes are an attribute",
        source="code: reduceTensor is handed the first input alone up to 9.3; both from 10.0-GA",
    ),
    Rule(
        name="trt-reduce-axes-computed", target="tensorrt",
        operators=(*REDUCTIONS, "ReduceSum"), condition=input_computed(1, "axes"),
        versions=">=10", effect="fails", what="axes have to be stored in the file",
        mend="fold constants, or export at opset 17", source="code: reduceTensor; documents",
    ),
    Rule(
        name="trt-reduce-sum-axes", target="tensorrt", operators=("ReduceSum",), versions="<10",
        condition=input_computed(1, "axes"), effect="fails",
        what="axes have to be stored in the file", mend="fold constants",
        source="code: reduceTensor, `Axis input must be an initializer!`",
    ),
    Rule(
        name="trt-scatter-reduction-ignored", target="tensorrt", versions="<10",
        operators=("ScatterElements", "ScatterND"),
        condition=attribute("reduction", lambda v: v not in (None, "none")), effect="wrong",
        what="the reduction is ignored: what is written last stays, sums are lost",
        mend="a one-hot matrix and MatMul in its place",
        source="code: no importer reads `reduction` up to 9.3; github.com/NVIDIA/TensorRT/issues/"
        "3750 and 2396",
    ),
    Rule(
        name="trt-scatter-plugin", target="tensorrt", versions=">=10",
        operators=("ScatterElements",),
        condition=attribute("reduction", lambda v: v not in (None, "none")),
        effect="falls back",
        what="a plugin runs it, which has to be loaded where it is built and where it runs",
        mend="a one-hot matrix and MatMul in its place",
        source="code: scatterPluginHelper; changes, 10.0.0 and 10.3.0",
    ),
    Rule(
        name="trt-scatter-more-indices", target="tensorrt", operators=("ScatterElements",),
        condition=both(
            _more_indices,
            lambda place: (
                None
                if place.target.version >= Version("10")
                and place.node.attributes.get("reduction", "none") != "none"
                else ""
            ),
        ),
        effect="fails", what="no axis of the indices may be longer than that of the data",
        mend="a one-hot matrix and MatMul in its place",
        source="code: addScatterLayer; github.com/NVIDIA/TensorRT/issues/3650",
    ),
    Rule(
        name="trt-scatter-nd-attribute", target="tensorrt", versions=">=10,<10.9",
        operators=("ScatterND",), condition=attribute_given("reduction"), effect="fails",
        what="the attribute `reduction` is refused, even where it says none",
        mend="leave the attribute out: opset 15 does",
        source="code at 10.0-GA; github.com/microsoft/onnxruntime/issues/23618; changes, 10.9.0",
    ),
    Rule(
        name="trt-scatter-nd-reduction", target="tensorrt", versions=">=10.9",
        operators=("ScatterND",), effect="fails",
        condition=attribute("reduction", lambda v: v not in (None, "none")),
        what="reductions other than none are not supported",
        mend="a one-hot matrix and MatMul in its place", source="documents at 11.1, ScatterND",
    ),
    Rule(
        name="trt-top-k", target="tensorrt", operators=("TopK",),
        condition=number_above(1, _K, "k"), effect="fails",
        what="k is at most 3840; a sort of N tokens is a TopK with k = N",
        mend="select the smaller side, kept or dropped, or cut the axis into tiles",
        source="docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/TopK.html; "
        "github.com/NVIDIA/TensorRT/issues/4244",
    ),
    Rule(
        name="trt-top-k-computed", target="tensorrt", versions="<8.6", operators=("TopK",),
        condition=input_computed(1, "k"), effect="fails", what="k has to be stored in the file",
        mend="make k a constant, and fold constants",
        source="code at 8.5-GA: `only supports input K as an initializer`; github.com/onnx/"
        "onnx-tensorrt/issues/947",
    ),
    Rule(
        name="trt-top-k-integers", target="tensorrt", versions="<8.6", operators=("TopK",),
        condition=typed(("int32", "int64"), (0,)), effect="fails",
        what="integers are not ranked", mend="cast to float32 before it",
        source="code at 8.5-GA: notInvalidType INT32",
    ),
    Rule(
        name="trt-data-dependent", target="tensorrt", operators=("NonZero", "NonMaxSuppression"),
        condition=always("its output is as long as the data say"), effect="falls back",
        what="sizes are known at run time only: memory for the longest, and outputs need an "
        "IOutputAllocator",
        mend="a fixed number of tokens: TopK with a constant k, then Gather",
        source="INonZeroLayer and IOutputAllocator in NVIDIA's API documents; "
        "github.com/pytorch/TensorRT/issues/2516",
    ),
    Rule(
        name="trt-loop", target="tensorrt", operators=("Loop", "Scan"),
        condition=always("one step after the other"), effect="slow",
        what="its steps run one after the other, each in kernels of its own",
        mend="compile with --backend tensorrt, which writes scans by doubling; or write them in "
        "chunks, as matrix products",
        source="code: importScan makes an ILoop; github.com/onnx/onnx/pull/7950: 10 to 50 times "
        "slower than a fused kernel",
    ),
)  # fmt: skip
