"""Decoding that reads a part of the weights, beside a prefill that reads all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from prunepass.analyse.flops import macs
from prunepass.analyse.projections import projections
from prunepass.graph.edit import open_module, seal_loose
from prunepass.passes.sparsify_inputs import edit, sparsify_inputs
from prunepass.planners.sparse_gain import SMALLEST
from prunepass.planners.sparsity import plan_inputs
from prunepass.plans import Step


@dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """What a decoding step is to read.

    Attributes:
        keep: Share of the inputs of each linear layer, in (0, 1].
        method: A method of sparse activation, `wina` and the like.
        smallest: Numbers of a weight below which a layer stays dense.
    """

    keep: float
    method: str = "wina"
    smallest: int = SMALLEST


def read_fewer_inputs(
    prefill: ExportedProgram, decode: ExportedProgram, asked: DecodeInputs
) -> tuple[ExportedProgram, ExportedProgram, Mapping[str, Any]]:
    """Both programs with weights stored alike, a decoding step sparse, and what became of layers.

    Weights lie in a bundle once, so both programs store them input-major; prefill takes them
    whole. Where the next layer's projections score image tokens, prefill reads their weights out of
    turn, and those layers stay as they are in both.

    Args:
        prefill: The prefill program, its projections labelled.
        decode: The decoding program of the same model.
        asked: What is to be read.

    Raises:
        PlanError: `keep` leaves less than one input.
        UnsupportedGraph: No layer gains from reading fewer inputs.
        UsageError: The method is unknown.
    """
    made = plan_inputs(decode, method=asked.method, keep=asked.keep, smallest=asked.smallest)
    once = _read_once(prefill)
    steps = tuple(step for step in made.steps if step.site in once)
    sparse, record = sparsify_inputs(decode, steps)
    module = open_module(prefill)
    edit(module, tuple(map(_dense, steps)))
    whole = seal_loose(module, prefill)
    told = {
        "method": asked.method, "keep": asked.keep, "layers": len(record.applied),
        "dense_layers": len(projections(decode.graph)) - len(record.applied),
        "macs_ratio": round(macs(sparse) / macs(decode), 4),
    }  # fmt: skip
    return whole, sparse, told


def _dense(step: Step) -> Step:
    """The same layer with all rows of its weight, stored alike."""
    return replace(step, options={**step.options, "rows": 0})


def _read_once(program: ExportedProgram) -> set[str]:
    """Sites of layers whose weight nothing else reads."""
    weights = {site: node.args[1] for site, node in projections(program.graph).items()}
    return {
        site
        for site, weight in weights.items()
        if isinstance(weight, Node) and len(weight.users) == 1
    }
