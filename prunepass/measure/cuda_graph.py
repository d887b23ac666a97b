"""Runs captured as CUDA graphs: what a GPU does, without the time the host takes to ask for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunepass.measure.timing import Run

_BEFORE = 3
"""Runs before the capture: kernels are compiled and memory is found in the first ones."""


def captured(run: Run, inputs: Sequence[Tensor]) -> Run:
    """A run that is replayed: always on the inputs it was captured with, whatever it is given.

    Its outputs are overwritten by the next call.

    Args:
        run: What is run, all of it on one CUDA device.
        inputs: On that device.

    Source: PyTorch, "CUDA semantics", whole-network capture.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(_BEFORE):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        outputs = tuple(run(*inputs))

    def replay(*_: Tensor) -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay
