from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, Node

from prunepass.graph import meta
from tests.conftest import Captured


@pytest.fixture
def node() -> Node:
    return Graph().placeholder("x")


def test_labels_add_up_in_order_and_once(node: Node) -> None:
    assert meta.labels(node) == ()
    for label in ("b", "a", "b"):
        meta.add_label(node, label)
    assert meta.labels(node) == ("b", "a")


def test_labels_leave_other_custom_entries_alone(node: Node) -> None:
    node.meta["custom"] = {"theirs": 3}
    meta.add_label(node, "ours")
    assert node.meta["custom"]["theirs"] == 3
    assert meta.labels(node) == ("ours",)


def test_labels_of_copies_are_their_own(node: Node) -> None:
    meta.add_label(node, "first")
    graph = Graph()
    copy = graph.node_copy(node)
    meta.add_label(copy, "second")
    assert meta.labels(node) == ("first",)
    assert meta.labels(copy) == ("first", "second")


def test_labelled_takes_the_last_of_several() -> None:
    graph = Graph()
    first, second = graph.placeholder("x"), graph.placeholder("y")
    for node in (first, second):
        meta.add_label(node, "same")
    assert meta.labelled(graph) == {"same": second}


def test_module_path(captured: Captured) -> None:
    paths = [meta.module_path(n) for n in captured("class").graph.nodes if n.op == "call_function"]
    assert {"blocks.0", "blocks.2.attn", "norm"} <= set(paths)
    assert meta.module_path(Graph().placeholder("x")) == "the model itself"


def test_inherit_takes_the_module_over() -> None:
    graph = Graph()
    source, node = graph.placeholder("x"), graph.placeholder("y")
    source.meta["nn_module_stack"] = {"": ("", "Model"), "k": ("head.fc", "Linear")}
    meta.inherit(node, source)
    assert meta.module_path(node) == "head.fc"


def test_shapes_with_a_dynamic_batch(captured: Captured) -> None:
    first = next(
        n for n in captured("class").graph.nodes if n.op == "call_function" and meta.shape(n)
    )
    shape = meta.shape(first)
    assert shape is not None
    assert isinstance(shape[0], torch.SymInt)
    assert meta.concrete_shape(first, 9) == (9, 28, 4, 5)
    assert meta.concrete(shape[0] * 3 + 1, 9) == 28
    assert meta.concrete(6, 9) == 6


def test_what_is_no_tensor_has_no_shape(node: Node) -> None:
    node.meta["val"] = (torch.ones(2), torch.ones(3))
    assert meta.shape(node) is None
    assert meta.concrete_shape(node, 9) is None
