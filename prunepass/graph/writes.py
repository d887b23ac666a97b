"""Operations written in another way: tensors changed in place, convolutions over one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from prunepass.errors import CaptureError
from prunepass.graph import meta


def _writes(node: Node) -> bool:
    """Whether an operation changes what it is given."""
    schema = getattr(node.target, "_schema", None)
    return bool(getattr(schema, "is_mutable", False))


def fold_writes(program: ExportedProgram, what: str) -> None:
    """Changes a program so that no operation changes a tensor that is there; `what` names it.

    Passes follow values from operation to operation: `x[1:3] = y` becomes a new x, in all that
    follows.

    Raises:
        CaptureError: Something else is written, or in a place that is seen in other ways besides.
    """
    write = next((node for node in program.graph.nodes if _writes(node)), None)
    while write is not None:
        _fold_write(program.graph, write, what)
        write = next((node for node in program.graph.nodes if _writes(node)), None)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def fold_convolutions(program: ExportedProgram) -> None:
    """Makes convolutions whose kernel is as large as what it reads products of matrices.

    Encoders that take flat patches write their first layer so; runtimes compute it slowly, or not
    at all without a bias.
    """
    aten = torch.ops.aten
    for node in program.graph.find_nodes(op="call_function", target=aten.conv3d.default):
        given, weight = node.args[:2]
        bias = node.args[2] if len(node.args) > 2 else None
        size, kernel = meta.shape(given) or (), meta.shape(weight) or ()
        padding = node.args[4] if len(node.args) > 4 else (0,)
        if size[1:] != kernel[1:] or any(padding):
            continue
        with program.graph.inserting_before(node):
            flat, matrix = (_call(aten.flatten.using_ints, x, 1) for x in (given, weight))
            found = _call(aten.linear.default, flat, matrix, bias)
            found = _call(aten.reshape.default, found, [-1, kernel[0], 1, 1, 1])
        found.meta = {**node.meta, **found.meta}
        node.replace_all_uses_with(found)
        program.graph.erase_node(node)
    program.graph_module.recompile()


def _call(operation: Any, first: Node, *rest: Any) -> Node:
    node = first.graph.call_function(operation, (first, *rest))
    values = [x.meta["val"] if isinstance(x, Node) else x for x in node.args]
    with meta.value(first).fake_mode:
        node.meta["val"] = operation(*values)
    return node


def _fold_write(graph: Graph, write: Node, what: str) -> None:
    aten = torch.ops.aten
    if write.target is aten.detach_.default:
        write.replace_all_uses_with(write.args[0])  # type: ignore[arg-type]
        graph.erase_node(write)
        return
    scatters: dict[Any, Any] = {
        aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default,
    }  # fmt: skip
    place, value = (*write.args, None)[:2]
    order = {node: number for number, node in enumerate(graph.nodes)}
    chain: list[Node] = []
    while isinstance(place, Node) and place.target in scatters:
        chain.append(place)
        place = place.args[0]
    followed = (
        write.target is aten.copy_.default and isinstance(place, Node) and isinstance(value, Node)
        and _alike(value, write.args[0])
        and not any(
            order[other] < order[write] and _used_after(other, write)
            for other in _same_memory(place) - {place, *chain}
        )
    )  # fmt: skip
    if not followed:
        raise CaptureError(
            f"the {what} changes tensors in place in a way that cannot be followed",
            found=f"{write.target} in {meta.module_path(write)}",
            fix="report the model",
        )
    assert isinstance(place, Node)
    assert isinstance(value, Node)
    with graph.inserting_before(write):
        for view in chain:
            target = view.args[0]
            assert isinstance(target, Node)
            if view.target is aten.slice.Tensor and _alike(value, target):
                continue  # all of it
            made = graph.call_function(scatters[view.target], (target, value, *view.args[1:]))
            made.meta = {k: v for k, v in target.meta.items() if k != "custom"}
            value = made
        again: dict[Node, Node] = {place: value}
        for view in reversed(chain):
            new = graph.node_copy(view, lambda node: again.get(node, node))
            again[view] = new
    for old, new in again.items():
        for user in list(old.users):
            if order.get(user, -1) > order[write]:
                user.replace_input_with(old, new)
    write.replace_all_uses_with(again[chain[0]] if chain else value)
    graph.erase_node(write)


def _same_memory(node: Node) -> set[Node]:
    """All nodes that may be other views of what a node holds, itself included."""
    root = node
    while _is_view(root) and isinstance(root.args[0], Node):
        root = root.args[0]
    found, frontier = {root}, [root]
    while frontier:
        new = [user for user in frontier.pop().users if _is_view(user) and user not in found]
        found.update(new)
        frontier += new
    return found


def _is_view(node: Node) -> bool:
    schema: Any = getattr(node.target, "_schema", None)
    returns = schema.returns if schema is not None else ()
    return any(value.alias_info is not None for value in returns)


def _used_after(node: Node, write: Node) -> bool:
    users = list(node.users)
    following = write.next
    while following.op != "root":
        if following in users:
            return True
        following = following.next
    return False


def _alike(node: Any, other: Any) -> bool:
    one, two = (getattr(x, "meta", {}).get("val") for x in (node, other))
    return (
        isinstance(one, Tensor) and isinstance(two, Tensor)
        and one.dtype == two.dtype and tuple(one.shape) == tuple(two.shape)
    )  # fmt: skip
