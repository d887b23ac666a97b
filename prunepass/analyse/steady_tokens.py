"""Tokens that do not depend on the picture: class, distillation and register tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from prunepass.graph import meta
from prunepass.graph.edit import open_module


class _UpTo(Interpreter):
    """Runs a graph as far as one node."""

    def __init__(self, module: GraphModule, goal: Node) -> None:
        super().__init__(module)
        self.goal = goal
        self.result: Any = None

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n is self.goal:
            self.result = result
            raise StopIteration
        return result


def steady_tokens(program: ExportedProgram, first: str) -> tuple[int, tuple[int, ...]]:
    """Tokens that come out equal for two random inputs: how many lead, and which others.

    Args:
        program: A program with labelled blocks.
        first: Label of the node where tokens [B, T, C] first are a stream.
    """
    module = open_module(program)
    # Asked of the opened graph: its nodes have names of their own.
    node = meta.labelled(module.graph)[first]
    args, _ = program.example_inputs
    flat, _ = torch.utils._pytree.tree_flatten(args)
    rows = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        inputs = [
            torch.randn(a.shape, generator=generator).to(a)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in flat
        ]
        runner = _UpTo(module, node)
        try:
            with torch.no_grad():
                runner.run(*inputs)
        except StopIteration:
            pass
        rows.append(runner.result)
    if rows[0].dim() != 3:
        return 0, ()
    same = (rows[0] == rows[1]).all(dim=-1).all(dim=0)
    if bool(same.all()):
        return 0, ()
    prefix = int(same.long().cumprod(0).sum())
    others = same.nonzero().flatten().tolist()[prefix:]
    # Where the stream is not scanned a token in the middle is a picture's like others.
    return prefix, tuple(others) if ".scan:" in first else ()
