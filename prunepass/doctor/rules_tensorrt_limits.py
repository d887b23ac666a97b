"""Types, sizes and attributes that TensorRT does not take.

Sources are named as in `rules_tensorrt`.
"""

from __future__ import annotations

from packaging.version import Version

from prunepass.doctor.conditions import (
    INTEGERS,
    always,
    attribute,
    attribute_given,
    beyond_int32,
    both,
    dynamic_input,
    elements_above,
    input_computed,
    not_typed,
    number_not,
    outputs_above,
    rank_not,
    ranks_above,
    typed,
)
from prunepass.doctor.rule import Place, Rule
from prunepass.doctor.rules_tensorrt import REDUCTIONS

_NARROW = ("float64", "float32", "float16", "int8", "uint8", "bool", "int32", "int64")
_WIDE = (*_NARROW, "bfloat16", "int4", "float8e4m3fn", "float4e2m1")
_UINT8 = ("Clip", "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Mod", "OneHot",
          "Pad", "ReverseSequence", "Slice", "Split", "Tile", "TopK", "Trilu")  # fmt: skip


def _equation(place: Place) -> str | None:
    text = str(place.node.attributes.get("equation", "")).replace(" ", "")
    terms = text.replace("...", "").split("->")[0].split(",")
    diagonal = any(len(set(term)) < len(term) for term in terms)
    ellipsis = "..." in text and place.target.version < Version("9")
    return f"the equation {text}" if diagonal or ellipsis else None


RULES: tuple[Rule, ...] = (
    Rule(
        name="trt-cumulative-sum", target="tensorrt", versions="<10.8", operators=("CumSum",),
        condition=both(always("a loop"), lambda p: None if input_computed(1, "")(p) else ""),
        effect="slow", what="it is run as a loop over its axis",
        mend="a product with a triangular matrix of ones",
        source="code at 10.1-GA: CumSum builds an ILoop; changes, 10.8.0",
    ),
    Rule(
        name="trt-cumulative-sum-axis", target="tensorrt", versions="<10.8",
        operators=("CumSum",), condition=input_computed(1, "the axis"), effect="fails",
        what="the axis has to be stored in the file", mend="fold constants",
        source="code: `Axis input for CumSum must be an initializer!`; changes, 10.8.0",
    ),
    Rule(
        name="trt-axes-computed", target="tensorrt", versions="<10.7",
        operators=("Squeeze", "Unsqueeze"), condition=input_computed(1, "axes"), effect="fails",
        what="axes have to be stored in the file", mend="fold constants",
        source="code: `axes input must be an initializer`; changes, 10.7.0",
    ),
    Rule(
        name="trt-double", target="tensorrt", operators=(),
        condition=typed(("float64",)), effect="wrong",
        what="float64 is computed as float32, clamped to its range",
        mend="export the model in float32", source="documents, note on DOUBLE",
    ),
    Rule(
        name="trt-int64-clamped", target="tensorrt", versions="<9",
        operators=("Add", "Sub", "Mul", "Div", "Equal", "Less", "Greater", "Where", "Gather",
                   "Mod", "Max", "Min"),
        condition=beyond_int32, effect="wrong",
        what="int64 is int32 there: the number is clamped",
        mend="keep integers within 32 bits", source="documents at 8.5-GA and 8.6-GA, note on INT64",
    ),
    Rule(
        name="trt-bfloat16", target="tensorrt", versions="<9", operators=("*",),
        condition=typed(("bfloat16",)), effect="fails", what="the type is unknown there",
        mend="export in float16 or float32",
        source="code: convertDtype at 8.6-GA; documents at 9.3 name BFLOAT16",
    ),
    Rule(
        name="trt-type", target="tensorrt", operators=("*",), condition=not_typed(_WIDE),
        effect="fails", what="the type is none of TensorRT's", mend="cast to int32 or float32",
        source="documents, list of data types; code: convertDtype",
    ),
    Rule(
        name="trt-uint8", target="tensorrt", operators=_UINT8,
        condition=typed(("uint8",), (0,)), effect="fails",
        what="uint8 is a type of inputs and outputs alone", mend="cast right behind the input",
        source="code: notInvalidType UINT8 in these importers; documents, note on UINT8",
    ),
    Rule(
        name="trt-matmul-integers", target="tensorrt", operators=("MatMul", "Gemm"),
        condition=typed(("int32", "int64")), effect="fails",
        what="integers are not multiplied as matrices", mend="cast to float32 around it",
        source="code: notInvalidType INT32, INT64 in MatMul and Gemm",
    ),
    Rule(
        name="trt-reduce-bool", target="tensorrt", versions=">=10",
        operators=(*REDUCTIONS, "ReduceSum"), condition=typed(("bool", "uint8"), (0,)),
        effect="fails", what="bool and uint8 are not reduced", mend="cast to int32 before it",
        source="code at 10.1-GA: reduceTensor",
    ),
    Rule(
        name="trt-power-integers", target="tensorrt", versions="<10.12", operators=("Pow",),
        condition=typed(INTEGERS, (0,)), effect="fails",
        what="a base of integers is not supported", mend="cast to float32, or multiply",
        source="documents at 10.0-GA: FP32, FP16, BF16; changes, 10.12.0",
    ),
    Rule(
        name="trt-einsum", target="tensorrt", versions="<10.12", operators=("Einsum",),
        condition=_equation, effect="fails", what="ellipses and diagonals are not supported",
        mend="MatMul, Mul and Transpose",
        source="documents at 8.6-GA, Einsum; code: ellipses from 9.0-GA on; changes, 10.12.0",
    ),
    Rule(
        name="trt-resize-antialias", target="tensorrt", operators=("Resize",),
        condition=attribute("antialias", bool), effect="wrong",
        what="antialiasing is not supported, and the attribute is not read",
        mend="resize before the model, or fold a resized position embedding into a constant",
        source="documents at 11.1, Resize; code to 10.1-GA never reads `antialias`",
    ),
    Rule(
        name="trt-resize-cubic", target="tensorrt", operators=("Resize",), effect="untested",
        condition=attribute("mode", lambda v: v == "cubic"),
        what="the parser's code reads it, its documents name nearest and linear alone",
        mend="resize before the model, or with two products: one matrix for rows, one for columns",
        source="documents at 8.5-GA to 11.1, Resize; code: setCubicCoeff in importResize",
    ),
    Rule(
        name="trt-zero-point", target="tensorrt",
        operators=("QuantizeLinear", "DequantizeLinear"),
        condition=number_not(2, 0, "zero point"), effect="fails",
        what="the zero point has to be 0", mend="quantise symmetrically",
        source="documents, QuantizeLinear and DequantizeLinear",
    ),
    Rule(
        name="trt-pool-indices", target="tensorrt", operators=("MaxPool",),
        condition=outputs_above(1), effect="fails", what="the output of indices is unsupported",
        mend="ArgMax over windows", source="documents, MaxPool",
    ),
    Rule(
        name="trt-pool-dilation", target="tensorrt", versions=">=10",
        operators=("MaxPool", "AveragePool"), effect="fails",
        condition=attribute("dilations", lambda v: any(d != 1 for d in v or ())),
        what="dilations have to be 1", mend="a slice with strides before the pooling",
        source="documents at 10.0-GA, MaxPool and AveragePool",
    ),
    Rule(
        name="trt-eye-like", target="tensorrt", operators=("EyeLike",),
        condition=dynamic_input(), effect="fails", what="its input needs sizes that are known",
        mend="store the matrix, or compare two ranges", source="documents, EyeLike; code",
    ),
    Rule(
        name="trt-one-hot", target="tensorrt", versions=">=10", operators=("OneHot",),
        condition=input_computed(1, "depth"), effect="fails",
        what="depth has to be known where it is built", mend="make depth a constant",
        source="documents at 10.0-GA, OneHot",
    ),
    Rule(
        name="trt-grid-sample", target="tensorrt", versions=">=10", operators=("GridSample",),
        condition=rank_not(0, 4), effect="fails", what="inputs of 4 axes alone are read",
        mend="reshape around it", source="documents at 10.0-GA, GridSample",
    ),
    Rule(
        name="trt-random-seed", target="tensorrt",
        operators=("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        condition=attribute_given("seed"), effect="wrong",
        what="the seed is ignored: other numbers than elsewhere, other ones each time",
        mend="store the numbers in the file", source="documents, RandomNormal and its like",
    ),
    Rule(
        name="trt-axes-8", target="tensorrt", operators=("*",), condition=ranks_above(8),
        effect="fails", what="a tensor has at most 8 axes", mend="join axes with Reshape",
        source="github.com/NVIDIA/TensorRT include/NvInferRuntimeBase.h: MAX_DIMS{8}, 8.5 to 11.1",
    ),
    Rule(
        name="trt-volume", target="tensorrt", operators=("TopK",),
        condition=elements_above(2**31 - 1), effect="fails",
        what="a tensor of it has at most 2^31 - 1 elements", mend="a smaller batch",
        source="docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/TopK.html",
    ),
)  # fmt: skip
