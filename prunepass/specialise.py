"""Last touches before a backend: no-ops out, duplicates folded, the batch fixed if asked."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from prunepass.graph.edit import open_module, seal

_NO_OPS = {
    torch.ops.aten.dropout.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.lift_fresh_copy.default,
}


def specialise(program: ExportedProgram, *, batch: int | None = None) -> ExportedProgram:
    """The same computation without what inference does not need.

    Args:
        program: Any program.
        batch: Fixes the batch size; None leaves it dynamic.
    """
    from torch.fx.passes.dialect.common.cse_pass import CSEPass

    module = open_module(program)
    for node in list(module.graph.nodes):
        if node.target in _NO_OPS:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    folded = CSEPass()(module)
    if folded is not None:
        module = folded.graph_module
    return seal(module, program, batch=batch)
