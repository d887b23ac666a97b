"""Programs that lose something on their way out, and their like that do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from tests.doctor.makers import Example

_X, _INDEX = torch.randn(4, 9), torch.zeros(4, 5, dtype=torch.int64)


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


EXAMPLES: dict[str, Example] = {
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
        program(
            lambda x, i: x.scatter(1, i.expand(x.shape[0], -1), 1.0), _X, _INDEX[:1], free=True
        ),
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
        program(
            lambda x, i: x.scatter_reduce(1, i, x[:, :5], "amax", include_self=False), _X, _INDEX
        ),
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
        program(
            lambda x: functional.scaled_dot_product_attention(x, x, x), torch.randn(1, 2, 6, 4)
        ),
        program(lambda x: (x @ x.mT).softmax(-1) @ x, torch.randn(1, 2, 6, 4)),
    ),
}  # fmt: skip
