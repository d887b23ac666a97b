"""Where the token axis runs behind a site, and what has to shrink with it.

Everything downstream of a site is run on meta tensors with a few tokens fewer. What breaks tells
what the graph froze: an argument that carries the token count (a *frozen size*), or an operand
made elsewhere that still has all tokens (a *live-in*). What breaks and cannot be mended in exactly
one way is a reason to refuse, with the operation and the sizes named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from prunepass.analyse.token_mends import FrozenSize, LiveIn, mend
from prunepass.analyse.token_positions import (
    BATCH,
    Axes,
    Refusal,
    check_positions,
    refuse,
    shape_text,
)
from prunepass.analyse.token_probe import Probe
from prunepass.graph import meta


@dataclass(frozen=True)
class TokenTrace:
    """What shrinks when tokens are removed at a site.

    Attributes:
        site: Node whose axis 1 is shrunk.
        tokens: Tokens on that axis.
        axes: Node -> its token axes, for every node downstream that still has one; none for a node
            with several outputs.
        frozen: Frozen sizes to rewrite.
        live_ins: Operands to gather.
        reaches_output: Whether an output of the program carries a token axis.
    """

    site: Node
    tokens: int
    axes: dict[Node, Axes]
    frozen: tuple[FrozenSize, ...]
    live_ins: tuple[LiveIn, ...]
    reaches_output: bool


def trace_tokens(
    module: GraphModule,
    site: Node,
    *,
    prefix: int,
    fixed: Collection[int] = (),
    until: Node | None = None,
) -> TokenTrace:
    """What shrinks with the token axis (axis 1) of `site`.

    Args:
        module: An opened program.
        site: Node with a value of shape [B, T, C].
        prefix: Leading tokens that always stay; reading one of them by index is allowed.
        fixed: Numbers of other tokens that always stay.
        until: Where all tokens are back; None where they never are.

    Raises:
        Refusal: Some operation downstream does not admit another number of tokens.
    """
    tokens = _sequence_length(site)
    removable = tokens - prefix - len(fixed)
    if removable < 3:
        raise Refusal(
            "too few tokens to remove any", node=site, found=f"{tokens} tokens, {prefix} prefix"
        )
    # A graph that groups tokens by twos admits two fewer, but not one.
    deltas = tuple(sorted({1, 2, removable // 2}))
    probe = Probe(module, site, tokens=tokens, deltas=deltas)
    frozen: list[FrozenSize] = []
    live_ins: list[LiveIn] = []
    reaches_output = False
    for node in _behind(module, site, until, probe):
        if node.op == "output":
            reaches_output = True
            continue
        if node.op != "call_function":
            raise refuse(node, f"{node.op} {node.target} has tokens among its inputs")
        check_positions(node, probe.axes, prefix, fixed)
        results = probe.attempt(node, {})
        if results is None:
            mended = mend(probe, node)
            results = mended.results
            frozen += mended.frozen
            live_ins += mended.live_ins
        probe.record(node, results)
    return TokenTrace(site, tokens, probe.axes, tuple(frozen), tuple(live_ins), reaches_output)


def _sequence_length(site: Node) -> int:
    """T of a node of shape [B, T, C].

    Raises:
        Refusal: It has another shape.
    """
    shape, sizes = meta.concrete_shape(site, BATCH), meta.shape(site)
    if shape is None or sizes is None or len(shape) != 3:
        raise Refusal(
            f"cannot remove tokens at {meta.module_path(site)}",
            node=site,
            found=f"{site.target} on {shape_text(site)}: tokens are laid out on a grid, where "
            "each has its place; token reduction needs a sequence [B, T, C]",
        )
    if not isinstance(sizes[1], int):
        raise Refusal(
            f"cannot remove tokens at {meta.module_path(site)}",
            node=site,
            found=f"{site.target} on {shape_text(site)}: axis 1 is the batch; token reduction "
            "needs a sequence [B, T, C]",
        )
    return shape[1]


def _behind(module: GraphModule, site: Node, until: Node | None, probe: Probe) -> Iterator[Node]:
    """Nodes that read tokens which the probe knows by then, up to where all tokens are back.

    Raises:
        Refusal: A node behind that place reads tokens from before it.
    """
    nodes = list(module.graph.nodes)
    ended = site is until
    for node in nodes[nodes.index(site) + 1 :]:
        read = [n for n in node.all_input_nodes if n in probe]
        if ended:
            if any(n is not until for n in read):
                raise refuse(node, "reads tokens from before the place where they come back")
            continue
        ended = node is until
        if read:
            yield node
