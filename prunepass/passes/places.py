"""What is done where tokens are scanned, laid out on a grid or wanted back, as steps ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from prunepass.analyse.scan import Order, step_bias
from prunepass.analyse.token_trace import TokenTrace
from prunepass.errors import PlanError, nearest
from prunepass.graph import meta
from prunepass.ops.selective_scan import SCAN
from prunepass.ops.token_places import GRID, LINE
from prunepass.plans import Plain, Step
from prunepass.rules.table import PLACE_OPTIONS
from prunepass.rules.token_gaps import ALIGNMENTS, CONVOLUTIONS


@dataclass(frozen=True)
class Places:
    """What is done where tokens are scanned and some are missing; options of any step.

    Attributes:
        alignment: `decay0`: states decay as if a token of zeros stood where one is missing;
            `decay`: as far as the missing ones stepped, on average, where they were dropped;
            `hold`: as if there was nothing between two tokens.
        convolution: `compact`: convolutions along the line take the tokens that are left for
            neighbours; `scatter`: they see zeros in the gaps.
        restore: Site behind which all tokens are back, those that went as they last were; for
            models whose output has every token. None: they stay away.
    """

    alignment: str = ALIGNMENTS[0]
    convolution: str = CONVOLUTIONS[0]
    restore: str | None = None


def places_of(options: Mapping[str, Plain]) -> Places:
    """What the options of a step say of scans.

    Raises:
        PlanError: An unknown way.
    """
    found = {name: options[name] for name in PLACE_OPTIONS if name in options}
    for name, known in (("alignment", ALIGNMENTS), ("convolution", CONVOLUTIONS)):
        if name in found and found[name] not in known:
            raise PlanError(
                f"there is no {name} called {found[name]!r}",
                found=repr(found[name]),
                fix=f"one of {nearest(str(found[name]), known)}",
            )
    return Places(**found)  # type: ignore[arg-type]


def check_places(
    graph: Graph, steps: Sequence[Step], trace: TokenTrace, orders: Mapping[Node, Order]
) -> Places:
    """What the steps say of scans, checked against those that follow.

    Raises:
        PlanError: They differ, or ask for what the scans cannot give.
    """
    chosen = {places_of(step.options) for step in steps}
    if len(chosen) > 1:
        raise PlanError(
            "the steps of a plan treat missing tokens in different ways",
            found=" and ".join(sorted(str(places) for places in chosen)),
            fix="one alignment and one convolution for all of them",
        )
    (places,) = chosen
    placed = [n for n in graph.nodes if n.target in (SCAN, LINE, GRID) and n in trace.axes]
    for node in placed:
        unknown = node.target is SCAN and step_bias(node) is None
        if unknown and places.alignment != "hold":
            raise PlanError(
                f"cannot tell how far a missing token steps in {meta.module_path(node)}",
                found="the step of the scan is no softplus of a linear layer with a bias",
                fix="alignment='hold'",
            )
        if node.target is GRID and node.args[0] in orders:
            raise PlanError(
                f"tokens are laid out on a grid out of order in {meta.module_path(node)}",
                found="a convolution over the grid behind a change of order",
                fix="no step in front of it",
            )
    return places
