"""Rotating the stream of a decoder: the steps, what they cost, and whether that is worth it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.analyse.projections import projections
from prunepass.graph import meta
from prunepass.planners.input_methods import INFORMED
from prunepass.plans import Step


def rotations(program: ExportedProgram) -> list[Step]:
    """One step for each part of a block that reads the stream, of the layer it is made from."""
    found: dict[str, Step] = {}
    for site in projections(program.graph):
        part, _, role = site.rpartition(".")
        if role in INFORMED or (role == "up" and part not in found):
            found[part] = Step(kind="rotate_inputs", site=site, rule="orthogonal-columns", keep=1.0)
    return list(found.values())


def turning_macs(program: ExportedProgram, turns: Sequence[Step]) -> int:
    """MACs of one token that rotations cost: every part's but the last one's is turned on."""
    if not turns:
        return 0
    sites = projections(program.graph)
    widths = [_inputs(sites[step.site]) for step in turns]
    found = sum(width**2 for width in widths[:-1])
    start = meta.labelled(program.graph)["block[0].attention:input"]
    if start.target is not torch.ops.aten.embedding.default:
        found += widths[0] ** 2  # embeddings from outside are turned as they come in
    return found


def rotation_note(ratio: float, turned: float, keep: float) -> str:
    """What rotations cost, in words, and what share of inputs the same MACs would read.

    Args:
        ratio: MACs of a token without them, relative to the dense ones, > 0.
        turned: Their own MACs, relative to the dense ones, >= 0.
        keep: Share of the inputs that is read, in (0, 1].
    """
    if ratio >= 1.0:
        return f"rotations add {turned:.1%} of the dense MACs, and nothing is saved"
    instead = keep + turned * (1.0 - keep) / (1.0 - ratio)
    if instead >= 1.0:
        return (
            f"rotations add {turned:.1%} of the dense MACs, more than reading fewer inputs saves: "
            "leave them out"
        )
    return (
        f"rotations add {turned:.1%} of the dense MACs; without them the same MACs read "
        f"{instead:.3f} of the inputs instead of {keep:.3f}"
    )


def _inputs(layer: Node) -> int:
    """Inputs of a linear layer: channels of the stream that it reads."""
    weight = layer.args[1]
    assert isinstance(weight, Node)
    return (meta.concrete_shape(weight, 1) or (0, 0))[1]
