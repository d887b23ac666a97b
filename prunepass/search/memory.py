"""How much memory a program takes for one example, from the shapes of its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from prunepass.passes.draft import draft
from prunepass.plans import Step


def memory(program: ExportedProgram, steps: Sequence[Step]) -> int:
    """Bytes of the weights a draft reads, and of the values alive at once at its peak, an example.

    A backend reuses and fuses in its own way; this is what is comparable.
    """
    module = draft(program, steps)
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    owned = dict(module.named_parameters()) | dict(module.named_buffers())
    weights = sum(x.nbytes for name, x in owned.items() if name in read)
    args, _ = program.example_inputs
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in args]
        runner = _Peak(module)
        runner.run(*fake)
    return weights + runner.peak // len(args[0])


class _Peak(Interpreter):
    """Runs a graph and notes the most bytes that computed values took at once."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.peak = 0

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        made = [result] if n.op != "get_attr" else []
        alive = [v for node, v in self.env.items() if node.op != "get_attr"]
        storages = {}
        for leaf in torch.utils._pytree.tree_leaves([*alive, *made]):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        self.peak = max(self.peak, sum(storages.values()))
        return result
