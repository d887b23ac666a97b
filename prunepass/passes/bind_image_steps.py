"""From the steps of a plan to the layers of a language model behind which image tokens go."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch.fx import Node

from prunepass.errors import PlanError, nearest
from prunepass.passes.sequence_stages import POSITIONS
from prunepass.plans import Step
from prunepass.rules.image_table import image_rule

PROMPT = ("inputs_embeds", "position_ids", "image_positions", "asking_positions", "asking_votes")
"""Inputs that the program must have: embeddings [B, T, C], positions [B, T] or [3, B, T], where
image tokens stand [B, I, N], which text tokens may score [B, R] and how much each counts [B, R]."""

OPTIONS: Mapping[str, Any] = {
    "positions": "keep_original",  # or "compact"
    "accumulate": [],  # layers from 1 whose transitions count, for rules that read transitions
    "absolute": True,  # 1 - |cos| as in the paper; False: 1 - cos as in its published code
    "layer": "next",  # whose queries and keys tell what text looks at: "next" or "own"
    "raters": False,  # whether only text that is like the image counts (SparseVLM)
}


@dataclass(frozen=True)
class ImageCut:
    """A step bound to the graph: behind layer `layer` (from 1), whose output is `node`."""

    step: Step
    layer: int
    node: Node
    keep: int | tuple[int, int]


def bind_image_steps(table: Mapping[str, Node], steps: Sequence[Step]) -> list[ImageCut]:
    """The steps that drop something, in the order of their layers.

    Args:
        table: Label -> node of a language model's graph.
        steps: Of a plan.

    Raises:
        PlanError: A step names an unknown site, rule or option, or keeps more than is left.
    """
    bound = []
    blocks = sum(label.startswith("block[") and ".output:" in label for label in table)
    for step in steps:
        image_rule(step.rule)
        _check_options(step)
        node = table.get(f"{step.site}:output")
        if node is None or not step.site.endswith("].output"):
            known = [f"block[{i}].output" for i in range(blocks - 1)]
            raise PlanError(
                f"image tokens cannot go at {step.site!r}",
                found=f"{blocks} layers",
                fix=f"one of {', '.join(nearest(step.site, known).split(', ')[:5])}",
            )
        layer = layer_of(step)
        if layer >= blocks:
            raise PlanError(
                f"no layer is left behind {step.site}",
                found=f"layer {layer} of {blocks}",
                fix=f"layers 1 to {blocks - 1}",
            )
        bound.append(ImageCut(step, layer, node, share_of(step.keep)))
    bound.sort(key=lambda cut: cut.layer)
    _check_order(bound)
    return [cut for cut in bound if not _keeps_all(cut.step)]


def layer_of(step: Step) -> int:
    """The layer behind which a step prunes, counted from 1."""
    return int(step.site[len("block[") : step.site.index("]")]) + 1


def branches_read(steps: Sequence[Step]) -> list[str]:
    """Sites whose change of the image tokens the rules of steps read, such as `block[1].mlp`.

    Raises:
        PlanError: The steps differ in which layers they are.
    """
    reading = [s for s in steps if "transition" in image_rule(s.rule).needs and not _keeps_all(s)]
    last = max(map(layer_of, reading), default=0)
    layers = [n for n in shared_options(steps).get("accumulate", ()) if 1 <= n <= last]
    return [f"block[{n - 1}].{branch}" for n in layers for branch in ("attention", "mlp")]


def share_of(keep: int | float) -> int | tuple[int, int]:
    """What a step keeps: a count, or a share (part, whole) of the original number."""
    if isinstance(keep, int):
        return keep
    share = Fraction(keep).limit_denominator(10_000)
    return share.numerator, share.denominator


def _keeps_all(step: Step) -> bool:
    """Whether a step keeps the share 1.0; the count 1 is another thing."""
    return isinstance(step.keep, float) and step.keep == 1.0


def _check_order(cuts: Sequence[ImageCut]) -> None:
    for one, other in itertools.pairwise(cuts):
        if one.layer == other.layer:
            raise PlanError(
                "two steps prune behind one layer", found=one.step.site, fix="one step a layer"
            )
        same = isinstance(one.step.keep, int) == isinstance(other.step.keep, int)
        if same and other.step.keep >= one.step.keep and not _keeps_all(one.step):
            raise PlanError(
                f"the step at {other.step.site} keeps as much as was left",
                found=f"keep={one.step.keep}, then {other.step.keep}",
                fix="shares of the original number, each smaller than the one before",
            )


def _check_options(step: Step) -> None:
    known: dict[str, object] = {**OPTIONS, **image_rule(step.rule).options}
    for name, value in step.options.items():
        if name not in known:
            raise PlanError(
                f"rule {step.rule!r} has no option {name!r}",
                found=f"{name}={value!r}",
                fix=f"one of {nearest(name, known)}",
            )
    for name, choices in (("positions", POSITIONS), ("layer", ("next", "own"))):
        value = step.options.get(name, OPTIONS[name])
        if value not in choices:
            raise PlanError(
                f"unknown {name} {value!r}", found=repr(value), fix=f"one of {', '.join(choices)}"
            )


def shared_options(steps: Sequence[Step]) -> dict[str, Any]:
    """Options that concern the whole program, which all steps must agree on."""
    shared: dict[str, Any] = {}
    for name in ("positions", "accumulate", "absolute", "raters"):
        values = [step.options.get(name, OPTIONS[name]) for step in steps]
        if any(value != values[0] for value in values):
            raise PlanError(
                f"steps of one plan differ in {name}",
                found=", ".join(map(repr, values)),
                fix="the same for all of them",
            )
        if values:
            shared[name] = values[0]
    return shared
