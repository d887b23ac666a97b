"""Which operators TensorRT's ONNX parser reads, and since when.

Sources: the importers defined in onnx/onnx-tensorrt, builtin_op_importers.cpp and
onnxOpImporters.cpp, branches 8.5-GA to 10.1-GA; for what came later the parser changes in
CHANGELOG.md of NVIDIA/TensorRT up to 11.1 and docs/operators.md of onnx-tensorrt at 10.15 and 11.1.
The parser goes by an operator's name alone, whatever its domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_SINCE = {
    "8.5": """
        Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
        Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum
        DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten
        Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If ImageScaler
        InstanceNormalization IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop
        LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg
        NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear
        RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal
        ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round ScaledTanh
        Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
        Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum TRT_AveragePool TRT_Conv
        TRT_Deconv TRT_FloorDiv TRT_FullyConnected TRT_Gather TRT_MatMul TRT_MaxAverageBlendPool
        TRT_MaxPool TRT_PluginV2 TRT_RNNv2 TRT_RaggedSoftmax TRT_Resize TRT_Scale TRT_Shuffle
        TRT_Slice TRT_TopK_Min Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
        Upsample Where Xor
    """,
    "8.6": "GroupNormalization IsInf LayerNormalization TRT_FP8DequantizeLinear "
    "TRT_FP8QuantizeLinear",
    "9.1": "CastLike",
    "9.2": "Hardmax",
    "10.0": "Gelu Mish TRT_INT4DequantizeLinear TRT_INT4QuantizeLinear",
    "10.1": "DeformConv",
    "10.4": "BlackmanWindow HammingWindow HannWindow",
    "10.5": "STFT",
    "10.14": "Attention",
    "10.15": "RMSNormalization RotaryEmbedding TensorScatter",
    "11.0": "Swish TRT_Attention TRT_KVCacheUpdate TRT_MoE",
}
IMPORTERS: Mapping[str, str] = MappingProxyType(
    {name: version for version, names in _SINCE.items() for name in names.split()}
)
"""Operator -> the first version of TensorRT that reads it; what is missing, none does."""
OPSETS: Mapping[str, int] = MappingProxyType(
    {"8.5": 17, "8.6": 17, "9.3": 19, "10.0": 20, "10.15": 24, "11.5": 25}
)
"""Version -> the newest ONNX operator set that its documentation names: docs/operators.md of
onnx-tensorrt at 8.5-GA, 8.6-GA, 9.3, 10.0-GA, 10.15 and 11.1; release notes of TensorRT 11.5."""
