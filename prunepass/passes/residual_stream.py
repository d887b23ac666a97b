"""The parts of a decoder's residual stream: who reads it through which norm, who writes to it.

A stream that is read through RMS norms by linear layers, written to by linear layers, and touched
by nothing else may be rotated, see `rotate_inputs`. Any other is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from prunepass.analyse.projections import LINEAR, projections
from prunepass.analyse.rms_norm import RmsNorm, rms_norm, rms_norm_before
from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta

SIZE = torch.ops.aten.sym_size.int  # a rotation leaves all sizes as they are
WRITERS = {"attention": "o", "mlp": "down"}
"""Part of a block -> the layer that writes to the stream."""


@dataclass(frozen=True)
class Part:
    """Half of a block: what reads the stream through one norm, and what is added to it.

    Attributes:
        site: `block[3].attention` or `block[3].mlp`.
        pivot: The layer whose columns become orthogonal.
        norm: The norm in front.
        readers: All layers behind that norm.
        writer: The layer whose output is added to the stream.
        addition: Where it is added.
    """

    site: str
    pivot: Node
    norm: RmsNorm
    readers: tuple[Node, ...]
    writer: Node
    addition: Node


@dataclass(frozen=True)
class End:
    """What reads the stream behind the last block: a norm and the head."""

    norm: RmsNorm
    readers: tuple[Node, ...]


@dataclass(frozen=True)
class Stream:
    """A residual stream.

    Attributes:
        parts: What reads and writes, in the order it runs; one at least.
        end: What reads it at last.
    """

    parts: tuple[Part, ...]
    end: End

    @property
    def start(self) -> Node:
        """Where it comes from, [B, T, C]."""
        return self.parts[0].norm.stream


def stream_of(graph: Graph, pivots: Mapping[str, Node]) -> Stream:
    """The residual stream of a decoder, free of casts and checks.

    Args:
        graph: Its projections labelled.
        pivots: Site of each part of each block, in the order they run, to the layer whose columns
            are to become orthogonal.

    Raises:
        UnsupportedGraph: The stream is read or written by something else than RMS norms and linear
            layers.
    """
    sites, table = projections(graph), meta.labelled(graph)
    parts = tuple(_part(site, pivot, sites, table) for site, pivot in pivots.items())
    found = Stream(parts, _end(graph, sites, parts[-1].addition))
    for part in parts:
        _check_shortcut(part)
    for number, part in enumerate(parts):
        stream = parts[number - 1].addition if number else found.start
        _check_readers(stream, part, part.addition)
    _check_readers(parts[-1].addition, found.end, None)
    return found


def _part(site: str, pivot: Node, sites: Mapping[str, Node], table: Mapping[str, Node]) -> Part:
    norm = rms_norm_before(pivot)
    writer = sites.get(f"{site}.{WRITERS[site.rpartition('.')[2]]}")
    addition = table.get(f"{site}:output")
    if writer is None or addition is None or writer not in addition.all_input_nodes:
        raise UnsupportedGraph(
            f"cannot rotate the stream at {site}",
            found="what is added to it is not the output of one linear layer",
            fix="rotate=False",
        )
    return Part(site, pivot, norm, _readers(norm), writer, addition)


def _readers(norm: RmsNorm) -> tuple[Node, ...]:
    """The linear layers behind a norm.

    Raises:
        UnsupportedGraph: Something else reads it, too.
    """
    readers = tuple(norm.output.users)
    for reader in readers:
        if reader.target is not LINEAR or reader.args[0] is not norm.output:
            raise UnsupportedGraph(
                f"cannot rotate what {meta.module_path(norm.output)} gives",
                found=f"{reader.target} reads it, which is no linear layer",
                fix="rotate=False",
            )
    return readers


def _end(graph: Graph, sites: Mapping[str, Node], last: Node) -> End:
    known = set(sites.values())
    for head in graph.find_nodes(op="call_function", target=LINEAR):
        source: Any = head.args[0]
        while source.target is torch.ops.aten.slice.Tensor:
            source = source.args[0]  # the last token alone goes on
        norm = rms_norm(source)
        if head not in known and norm is not None and norm.stream is last:
            return End(norm, (head,))
    raise UnsupportedGraph(
        "cannot rotate the stream of this model",
        found="its last block is not followed by an RMS norm and a head",
        fix="rotate=False",
    )


def _check_shortcut(part: Part) -> None:
    """Refuses a part whose output is added to something else than what it read."""
    added = [n for n in part.addition.all_input_nodes if n is not part.writer]
    if added != [part.norm.stream]:
        raise UnsupportedGraph(
            f"cannot rotate the shortcut of {part.site}",
            found=f"{[str(n.target) for n in added]} is added, not the stream itself",
            fix="rotate=False",
        )


def _check_readers(stream: Node, reader: Part | End, addition: Node | None) -> None:
    """Refuses a stretch of the stream [B, T, C] that is read besides a norm and an addition."""
    if reader.norm.stream is not stream:
        raise UnsupportedGraph(
            f"cannot rotate the stream in front of {meta.module_path(reader.norm.output)}",
            found="something stands between two parts of a block",
            fix="rotate=False",
        )
    allowed = {addition, *_norm_nodes(reader.norm)}
    others = [u for u in stream.users if u not in allowed and u.target is not SIZE]
    if others:
        raise UnsupportedGraph(
            "cannot rotate a stream that is read besides its norms",
            found=f"{others[0].target} in {meta.module_path(others[0])}",
            fix="rotate=False",
        )


def _norm_nodes(norm: RmsNorm) -> set[Node]:
    """Nodes between a stream and the result of its norm."""
    found: set[Node] = set()
    frontier = [norm.bare]
    while frontier:
        node = frontier.pop()
        if node is norm.stream or node in found:
            continue
        found.add(node)
        frontier += node.all_input_nodes
    return found
