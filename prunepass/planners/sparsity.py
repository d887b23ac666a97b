"""From a method and a share of inputs to a plan for the linear layers of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from prunepass.analyse.flops import macs
from prunepass.analyse.projections import block_of, projections, role_of
from prunepass.analyse.sites import fingerprint
from prunepass.errors import UnsupportedGraph, UsageError
from prunepass.graph import meta
from prunepass.kernels.sparse_linear import checked_count
from prunepass.planners.block_runs import BlockRuns, Layer, record_blocks, thresholds
from prunepass.planners.decoder_texts import text_inputs
from prunepass.planners.greedy_allocation import STEP, allocate_greedily
from prunepass.planners.input_methods import INFORMED, InputMethod, input_method
from prunepass.plans import Plain, Plan, Step, check_keep
from prunepass.rules.input_table import input_rule

SMALLEST = 1 << 20
"""Numbers of a weight below which a sparse product gained nothing where it was measured."""

FIXED, SEARCH = 1 << 19, 1000
"""Bytes of weight that can be read in the time that a sparse product takes besides reading: at all,
and to find out for one input whether it stays. From `scripts/bench_sparse --linear --shape ...`."""

PAYS = 0.75
"""Share of the weight that all rows together may read and still gain: a dense product reads it once
for all of them, a little faster than rows here and there."""


def plan_inputs(
    program: ExportedProgram,
    *,
    method: str = "wina",
    keep: float,
    calibration: Sequence[Sequence[int]] | None = None,
    informed: Sequence[str] | None = None,
    gate: str = "top-k",
    rotate: bool = False,
    smallest: int = SMALLEST,
    rows: int | None = None,
    step: float = STEP,
) -> Plan:
    """A plan that lets the linear layers of a decoder read a share of their inputs.

    Without calibration every layer keeps the same share. With it the layers of one block share out
    what the block keeps, greedily, by how much the block's output changes. A layer that would not
    gain stays dense, and the plan's notes say how many and why.

    Args:
        program: From `prunepass.language.capture`.
        method: `wina`, `teal`, `cats` or `r-sparse`.
        keep: Share of the inputs that stay, in (0, 1], weighed by the sizes of the layers.
        calibration: Texts as token numbers.
        informed: Layers whose inputs are scored by the method's own rule, the others by |x|; None
            for what was published (wina: k and gate).
        gate: `top-k`: so many inputs for each token; `threshold`: those whose score lies above a
            threshold that calibration finds, so many in the mean.
        rotate: Whether the stream is rotated first so that k and gate have orthogonal columns.
        smallest: Numbers of a weight below which a layer stays dense; 0 makes all layers sparse,
            also those that would not gain.
        rows: Tokens at once up to which the product is sparse; None for as many as read less
            together than a dense product does, each of them its own rows of the weight.
        step: How finely layers share out, see `greedy_allocation.STEP`.

    Raises:
        PlanError: `keep` is outside (0, 1], or a text is empty or holds unknown tokens.
        UnsupportedGraph: The program has no layer that can read fewer inputs.
        UsageError: The method or the gate is unknown, or a threshold has nothing to go by.
    """
    chosen = input_method(method)
    check_keep(float(keep), where="the plan")
    _check_gate(gate, calibration)
    layers = _layers(program, chosen, tuple(informed) if informed else None)
    large = [layer for layer in layers if layer.inputs * layer.outputs >= smallest]
    if not large:
        most = max(layer.inputs * layer.outputs for layer in layers)
        raise UnsupportedGraph(
            "no linear layer of this model gains from reading fewer inputs",
            found=f"the largest weight has {most} numbers, {smallest} is the least that gains",
            fix="a larger model, or smallest=0 (--smallest 0) for the sake of trying",
        )
    for layer in large:
        checked_count(float(keep), layer.inputs)
    rows = max(1, int(PAYS / keep)) if rows is None else rows
    shares = {layer.site: float(keep) for layer in large}
    runs = None
    if calibration is not None:
        runs = record_blocks(program, text_inputs(program, calibration))
        if keep < 1.0:
            shares = _greedy(large, runs, float(keep), step)
    width = _bytes(program)
    slow = [x.site for x in large if smallest and not pays(x, shares[x.site], width=width)]
    shares |= dict.fromkeys(slow, 1.0)
    limits = thresholds(runs, large, shares) if gate == "threshold" and runs else {}
    steps = [
        _step(layer, shares[layer.site], chosen, rows, smallest, limits.get(layer.site))
        for layer in large
    ]
    turns = _rotations(program) if rotate else []
    ratio, turned = _ratios(program, steps, large, turns)
    notes: dict[str, Plain] = {
        "keep": float(keep), "macs_ratio": round(ratio + turned, 4), "gate": gate,
        "allocation": "greedy" if calibration is not None and keep < 1.0 else "uniform",
    }  # fmt: skip
    if rotate:
        notes["rotation"] = _rotation_note(ratio, turned, float(keep))
    small = len(layers) - len(large)
    why = [
        f"{count} layers {reason}"
        for count, reason in (
            (small, "are too small to gain"),
            (len(slow) if keep < 1.0 else 0, "would save less than finding their inputs costs"),
        )
        if count
    ]
    if why:
        notes["dense"] = "; ".join(why)
    return Plan(
        method=method, steps=(*turns, *steps), fingerprint=fingerprint(program), notes=notes
    )


def pays(layer: Layer, keep: float, *, width: int) -> bool:
    """Whether a layer is faster where it reads a share of its inputs.

    Args:
        layer: The layer.
        keep: The share, in (0, 1].
        width: Bytes of a number of its weight.
    """
    saved = (1.0 - keep) * layer.inputs * layer.outputs * width
    return saved >= FIXED + SEARCH * layer.inputs


def _bytes(program: ExportedProgram) -> int:
    """Bytes of a number of the weights."""
    return max(p.element_size() for p in program.parameters())


def _layers(
    program: ExportedProgram, chosen: InputMethod, informed: tuple[str, ...] | None
) -> list[Layer]:
    found = []
    for site, node in projections(program.graph).items():
        role = role_of(site)
        shape = meta.concrete_shape(_weight(node), 1)
        if role in chosen.roles and shape is not None:
            rule = chosen.rule_of(role, informed)
            if input_rule(rule).score != "gate" or _has_gate(program.graph, site):
                found.append(Layer(site, rule, shape[1], shape[0]))
    if not found:
        raise UnsupportedGraph(
            f"this model has no linear layer where {chosen.name!r} can read fewer inputs",
            found="no labelled layer of attention or MLP",
            fix="a decoder from prunepass.language.capture",
        )
    return found


def _has_gate(graph: Graph, site: str) -> bool:
    return f"{site.rpartition('.')[0]}.gate" in projections(graph)


def _weight(node: Node) -> Node:
    weight = node.args[1]
    assert isinstance(weight, Node)
    return weight


def _step(
    layer: Layer, keep: float, method: InputMethod, rows: int, smallest: int, limit: float | None
) -> Step:
    options: dict[str, Plain] = {"rows": rows, "smallest": smallest}
    if limit is not None:
        options["threshold"] = limit
    if method.low_rank and keep < 1.0:
        whole = layer.inputs * layer.outputs
        options["rank"] = int(method.low_rank * keep * whole / (layer.inputs + layer.outputs))
        keep *= 1.0 - method.low_rank
    return Step(
        kind="sparsify_inputs", site=layer.site, rule=layer.rule, keep=keep, options=options
    )


def _greedy(layers: Sequence[Layer], runs: BlockRuns, keep: float, step: float) -> dict[str, float]:
    shares: dict[str, float] = {}
    for block in sorted({block_of(layer.site) for layer in layers}):
        inside = [layer for layer in layers if block_of(layer.site) == block]
        shares |= allocate_greedily(runs, block, inside, keep=keep, step=step)
    return shares


def _rotations(program: ExportedProgram) -> list[Step]:
    """One step for each part of a block that reads the stream, of the layer it is made from."""
    found: dict[str, Step] = {}
    for site in projections(program.graph):
        part, _, role = site.rpartition(".")
        if role in INFORMED or (role == "up" and part not in found):
            found[part] = Step(kind="rotate_inputs", site=site, rule="orthogonal-columns", keep=1.0)
    return list(found.values())


def _ratios(
    program: ExportedProgram, steps: Sequence[Step], layers: Sequence[Layer], turns: Sequence[Step]
) -> tuple[float, float]:
    """MACs of one token relative to the dense program's: without rotations, and of those alone."""
    whole = dense = macs(program)
    sizes = {layer.site: layer for layer in layers}
    for step in steps:
        layer = sizes[step.site]
        kept = checked_count(step.keep, layer.inputs)
        whole -= (layer.inputs - kept) * layer.outputs
        rank: Any = step.options.get("rank", 0)
        whole += rank * (layer.inputs + layer.outputs)
    return whole / dense, _turning(program, turns) / dense


def _turning(program: ExportedProgram, turns: Sequence[Step]) -> int:
    """MACs of one token that rotations cost: every part's but the last one's is turned on."""
    sites = projections(program.graph)
    sides = [meta.concrete_shape(_weight(sites[step.site]), 1) or (0, 0) for step in turns]
    found = sum(side[1] ** 2 for side in sides[:-1])
    start = meta.labelled(program.graph)["block[0].attention:input"]
    if turns and start.target is not torch.ops.aten.embedding.default:
        found += sides[0][1] ** 2  # embeddings from outside are turned as they come in
    return found


def _rotation_note(ratio: float, turned: float, keep: float) -> str:
    """What the rotations cost, in words, and what share of inputs the same MACs would read."""
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


def _check_gate(gate: str, calibration: object) -> None:
    if gate not in ("top-k", "threshold"):
        raise UsageError(f"unknown gate {gate!r}", found=gate, fix="top-k or threshold")
    if gate == "threshold" and calibration is None:
        raise UsageError(
            "a threshold is found on texts", found="gate='threshold' without calibration",
            fix="calibration=[[...], ...], texts as token numbers, or gate='top-k'",
        )  # fmt: skip
