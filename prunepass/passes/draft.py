"""A plan carried out as a draft: a module that runs eagerly, not sealed. Quick, for searching."""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram
from torch.fx import GraphModule

from prunepass.errors import PlanError
from prunepass.graph.edit import open_module
from prunepass.passes import drop_layers, reduce_tokens
from prunepass.plans import Step


def draft(program: ExportedProgram, steps: Sequence[Step]) -> GraphModule:
    """What a program computes with these steps carried out, as an unsealed module.

    Raises:
        PlanError: A step is not of the kinds `drop_layers` and `reduce_tokens`, or cannot be bound.
        UnsupportedGraph: The graph does not allow a step.
    """
    edits = {"drop_layers": drop_layers.edit, "reduce_tokens": reduce_tokens.edit}
    strange = [step.kind for step in steps if step.kind not in edits]
    if strange:
        raise PlanError("such a step has no draft", found=strange[0], fix="reduce_tokens")
    module = open_module(program)
    for kind, edit in edits.items():
        mine = [step for step in steps if step.kind == kind]
        if mine:
            edit(module, mine)
    return module
