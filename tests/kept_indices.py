"""Programs that tell which tokens they keep."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from prunepass.graph import meta
from prunepass.passes.reduce_tokens import draft
from prunepass.plans import Step


def with_kept(program: ExportedProgram, steps: Sequence[Step]) -> GraphModule:
    """The reduced program, unsealed: (logits, kept [B, K] of each step in graph order)."""
    module, _ = draft(program, steps)
    graph = module.graph
    kept = []
    for node in list(graph.nodes):
        if any(label.endswith(":reduce.select") for label in meta.labels(node)):
            with graph.inserting_after(node):
                kept.append(graph.call_function(operator.getitem, (node, 0)))
    assert len(kept) == len(steps)
    (output,) = graph.find_nodes(op="output")
    output.args = ((*output.args[0], *kept),)
    graph.set_codegen(CodeGen())
    module.recompile()
    return module
