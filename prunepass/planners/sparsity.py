"""From a method and a share of inputs to a plan for the linear layers of a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Graph, Node

from prunepass.analyse.flops import macs
from prunepass.analyse.projections import block_of, projections, role_of
from prunepass.analyse.sites import fingerprint
from prunepass.errors import UnsupportedGraph, UsageError, looked_up
from prunepass.graph import meta
from prunepass.kernels.sparse_linear import checked_count
from prunepass.passes.rotate_inputs import rotate_inputs
from prunepass.planners.block_runs import BlockRuns, Layer, record_blocks, thresholds
from prunepass.planners.decoder_texts import text_inputs
from prunepass.planners.greedy_allocation import STEP, allocate_greedily
from prunepass.planners.input_methods import ALL, InputMethod, input_method
from prunepass.planners.rotation import rotation_note, rotations, turning_macs
from prunepass.planners.sparse_gain import (
    OVERHEADS,
    SMALLEST,
    large_enough,
    pays,
    rows_that_gain,
)
from prunepass.plans import Plain, Plan, Step, check_share
from prunepass.rules.input_table import input_rule


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
    device: str = "cpu",
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
        device: Where the layers will run, `cpu` or `cuda`: which of them gain depends on it.

    Raises:
        PlanError: `keep` is outside (0, 1], or a text is empty or holds unknown tokens.
        UnsupportedGraph: The program has no layer that can read fewer inputs.
        UsageError: The method or the gate is unknown, or a threshold has nothing to go by.
    """
    chosen = input_method(method)
    check_share(keep)
    _check_gate(gate, calibration)
    looked_up(OVERHEADS, device, "device", UsageError)
    _check_numbers(rows, smallest)
    every = _layers(program, chosen, _roles(informed))
    layers = large_enough(every, smallest)
    for layer in layers:
        checked_count(float(keep), layer.inputs)
    turns = rotations(program) if rotate else []
    runs = None
    if calibration is not None:
        # Shares and thresholds are those of what runs: rotated inputs are others.
        turned = rotate_inputs(program, turns)[0] if turns else program
        runs = record_blocks(turned, text_inputs(program, calibration))
    shares = _shares(layers, runs, float(keep), step)
    slow = _slow(program, layers, shares, device) if smallest else []
    shares |= dict.fromkeys(slow, 1.0)
    # A layer with a threshold has it checked for each input, so none where all are read.
    gated = [x for x in layers if shares[x.site] < 1.0] if gate == "threshold" else []
    read = {site: _without_low_rank(share, chosen) for site, share in shares.items()}
    limits = thresholds(runs, gated, read) if runs is not None else {}
    rows = rows_that_gain(float(keep)) if rows is None else rows
    steps = [_step(x, shares[x.site], chosen, rows, limits.get(x.site)) for x in layers]
    ratio, turning = _ratios(program, steps, layers, turns)
    notes: dict[str, Plain] = {
        "keep": float(keep), "macs_ratio": round(ratio + turning, 4), "gate": gate,
        "allocation": "greedy" if runs is not None and keep < 1.0 else "uniform",
    }  # fmt: skip
    if rotate:
        notes["rotation"] = rotation_note(ratio, turning, float(keep))
    notes |= _dense_note(len(every) - len(layers), len(slow) if keep < 1.0 else 0)
    return Plan(
        method=method, steps=(*turns, *steps), fingerprint=fingerprint(program), notes=notes
    )


def _check_gate(gate: str, calibration: object) -> None:
    if gate not in ("top-k", "threshold"):
        raise UsageError(f"unknown gate {gate!r}", found=gate, fix="top-k or threshold")
    if gate == "threshold" and calibration is None:
        raise UsageError(
            "a threshold is found on texts", found="gate='threshold' without calibration",
            fix="calibration=[[...], ...], texts as token numbers, or gate='top-k'",
        )  # fmt: skip


def _check_numbers(rows: object, smallest: object) -> None:
    for name, value, least in (("rows", rows, 1), ("smallest", smallest, 0)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and value >= least) and not (name == "rows" and value is None):  # type: ignore[operator]
            raise UsageError(
                f"{name} is a whole number of at least {least}", found=f"{name}={value!r}",
                fix=f"{name}={least}, or leave it out",
            )  # fmt: skip


def _roles(informed: Sequence[str] | None) -> tuple[str, ...] | None:
    """Layers whose inputs are scored by the method's own rule, None for those of the method."""
    if informed is None:
        return None
    named = (informed,) if isinstance(informed, str) else informed
    unknown = [r for r in named if r not in ALL] if isinstance(named, Sequence) else [named]
    if unknown:
        raise UsageError(
            f"there is no kind of layer called {unknown[0]!r}", found=f"informed={informed!r}",
            fix=f"some of {', '.join(ALL)}",
        )  # fmt: skip
    return tuple(named)


def _layers(
    program: ExportedProgram, chosen: InputMethod, informed: tuple[str, ...] | None
) -> list[Layer]:
    """The layers that a method makes sparse, in graph order.

    Raises:
        UnsupportedGraph: There are none.
    """
    found = []
    for site, node in projections(program.graph).items():
        role = role_of(site)
        shape = _shape(node)
        if role in chosen.roles and shape is not None:
            rule = chosen.rule_of(role, informed)
            if input_rule(rule).score != "gate" or _has_gate(program.graph, site):
                found.append(Layer(site, rule, shape[1], shape[0]))
    if not found:
        there = dict.fromkeys(role_of(site) for site in projections(program.graph))
        raise UnsupportedGraph(
            f"this model has no linear layer where {chosen.name!r} can read fewer inputs",
            found=f"layers {', '.join(there)}" if there else "no labelled layer",
            fix="another method, such as wina" if there
            else "a decoder from prunepass.language.capture",
        )  # fmt: skip
    return found


def _has_gate(graph: Graph, site: str) -> bool:
    return f"{site.rpartition('.')[0]}.gate" in projections(graph)


def _shape(layer: Node) -> tuple[int, ...] | None:
    """(outputs, inputs) of a linear layer."""
    weight = layer.args[1]
    assert isinstance(weight, Node)
    return meta.concrete_shape(weight, 1)


def _shares(
    layers: Sequence[Layer], runs: BlockRuns | None, keep: float, step: float
) -> dict[str, float]:
    """Site -> share of its inputs that a layer reads: the same, or shared out in each block."""
    if runs is None or keep >= 1.0:
        return {layer.site: keep for layer in layers}
    shares: dict[str, float] = {}
    for block in sorted({block_of(layer.site) for layer in layers}):
        inside = [layer for layer in layers if block_of(layer.site) == block]
        shares |= allocate_greedily(runs, block, inside, keep=keep, step=step)
    return shares


def _slow(
    program: ExportedProgram, layers: Sequence[Layer], shares: Mapping[str, float], device: str
) -> list[str]:
    """Sites of layers that would lose time by their shares."""
    width = max(p.element_size() for p in program.parameters())
    return [x.site for x in layers if not pays(x, shares[x.site], width=width, device=device)]


def _step(layer: Layer, keep: float, method: InputMethod, rows: int, limit: float | None) -> Step:
    options: dict[str, Plain] = {"rows": rows}
    if limit is not None:
        options["threshold"] = limit
    if method.low_rank and keep < 1.0:
        rank = method.low_rank * keep * layer.numbers / (layer.inputs + layer.outputs)
        options["rank"] = int(rank)
    return Step(
        kind="sparsify_inputs", site=layer.site, rule=layer.rule,
        keep=_without_low_rank(keep, method), options=options,
    )  # fmt: skip


def _without_low_rank(keep: float, method: InputMethod) -> float:
    """Share of the inputs that are read one by one, of what a layer keeps."""
    return keep * (1.0 - method.low_rank) if keep < 1.0 else keep


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
    return whole / dense, turning_macs(program, turns) / dense


def _dense_note(small: int, slow: int) -> dict[str, Plain]:
    """How many layers stay dense and why, nothing where none does."""
    why = [
        f"{count} layers {reason}"
        for count, reason in (
            (small, "are too small to gain"),
            (slow, "would save less than finding their inputs costs"),
        )
        if count
    ]
    return {"dense": "; ".join(why)} if why else {}
