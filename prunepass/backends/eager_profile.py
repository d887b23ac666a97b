"""Where the time of an eager engine goes, node by node."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from prunepass.backends.eager import EagerEngine
from prunepass.backends.protocol import NodeTime
from prunepass.graph.parts import parts


def profile_eager(
    engine: EagerEngine, inputs: Sequence[Tensor], *, runs: int, warm_up: int = 3
) -> list[NodeTime]:
    """Seconds of each node of one run, the median of several, on a CPU.

    Args:
        engine: A loaded engine.
        inputs: One batch.
        runs: That are measured.
        warm_up: Runs before that are not.
    """
    assert isinstance(engine.module, GraphModule)
    clock = _Clock(engine.module)
    with torch.no_grad():
        for turn in range(warm_up + runs):
            if turn == warm_up:
                clock.seconds.clear()
            clock.run(*inputs)
    belongs = parts(engine.module.graph)
    return [
        NodeTime(node.name, str(node.target), belongs[node], statistics.median(seconds))
        for node, seconds in clock.seconds.items()
    ]


class _Clock(Interpreter):
    """Runs a graph and notes the seconds of each call."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[Node, list[float]] = {}

    def run_node(self, n: Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(n)
        if n.op == "call_function":
            self.seconds.setdefault(n, []).append(time.perf_counter() - start)
        return result
