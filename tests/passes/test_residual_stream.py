from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, Node

from prunepass.analyse.projections import projections, role_of
from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from prunepass.graph.simplify import drop_casts, drop_checks
from prunepass.passes.residual_stream import stream_of
from tests.tiny_decoders import captured

PARTS = [f"block[{i}].{part}" for i in range(2) for part in ("attention", "mlp")]


def opened(family: str) -> Graph:
    """Its graph as the pass has it. The module that owns it must stay."""
    module = open_module(captured(family, torch.float64))
    drop_casts(module.graph)
    drop_checks(module.graph)
    return module.graph


def pivots(graph: Graph, *roles: str) -> dict[str, Node]:
    return {
        site.rpartition(".")[0]: node
        for site, node in projections(graph).items()
        if role_of(site) in roles
    }


def test_every_part_says_who_reads_and_who_writes() -> None:
    graph = opened("llama")
    stream = stream_of(graph, pivots(graph, "k", "gate"))
    assert [part.site for part in stream.parts] == PARTS
    names = {node: role_of(site) for site, node in projections(graph).items()}
    for part in stream.parts:
        readers, writer = ("qkv", "o") if "attention" in part.site else (("gate", "up"), "down")
        assert {names[node] for node in part.readers} == set(readers)
        assert names[part.writer] == writer
        assert part.addition in meta.labelled(graph).values()
    for part, following in zip(stream.parts, [*stream.parts[1:], stream.end], strict=True):
        assert following.norm.stream is part.addition
    assert stream.start.target is torch.ops.aten.embedding.default
    (head,) = stream.end.readers
    assert head not in names


def test_a_stream_that_something_else_reads_is_refused() -> None:
    graph = opened("llama")
    found = pivots(graph, "k", "gate")
    addition = stream_of(graph, found).parts[0].addition
    with graph.inserting_after(addition):
        graph.call_function(torch.ops.aten.relu.default, (addition,))
    with pytest.raises(UnsupportedGraph, match="read besides its norms") as caught:
        stream_of(graph, found)
    assert "aten.relu" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_norm_that_something_else_reads_is_refused() -> None:
    graph = opened("llama")
    found = pivots(graph, "k", "gate")
    output = stream_of(graph, found).parts[1].norm.output
    with graph.inserting_after(output):
        graph.call_function(torch.ops.aten.relu.default, (output,))
    with pytest.raises(UnsupportedGraph, match="which is no linear layer"):
        stream_of(graph, found)


def test_a_shortcut_from_elsewhere_is_refused() -> None:
    graph = opened("llama")
    found = pivots(graph, "k", "gate")
    first, second = stream_of(graph, found).parts[:2]
    second.addition.replace_input_with(first.addition, first.norm.stream)
    with pytest.raises(UnsupportedGraph, match=r"the shortcut of block\[0\].mlp"):
        stream_of(graph, found)


def test_a_writer_that_is_not_added_is_refused() -> None:
    graph = opened("llama")
    found = pivots(graph, "k", "gate")
    writer = stream_of(graph, found).parts[0].writer
    with graph.inserting_after(writer):
        between = graph.call_function(torch.ops.aten.relu.default, (writer,))
    writer.replace_all_uses_with(between, delete_user_cb=lambda user: user is not between)
    with pytest.raises(UnsupportedGraph, match="not the output of one linear layer"):
        stream_of(graph, found)
