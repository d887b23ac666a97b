"""Last touches before a backend."""

from __future__ import annotations

from torch.export import ExportedProgram

from prunepass.graph.edit import open_module, seal


def specialise(program: ExportedProgram, *, batch: int | None = None) -> ExportedProgram:
    """The same computation without what inference does not need, the batch fixed if asked.

    Args:
        program: Any program.
        batch: The batch size, None leaves it dynamic.
    """
    return seal(open_module(program), program, batch=batch)
