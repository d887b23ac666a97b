"""A program of `torch.export` as a view."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx import Node as FxNode

import prunepass.ops.selective_scan
import prunepass.ops.token_places  # noqa: F401  (operations that programs call)
from prunepass.doctor.read import is_compiled
from prunepass.doctor.view import Node, Value, View
from prunepass.errors import ModelError, first_line
from prunepass.graph.meta import module_path


def read_program(path: Path) -> View:
    """The graph of a file of `torch.export.save`.

    Raises:
        ModelError: There is no such file, or it holds no program.
    """
    import prunepass.kernels.sparse_linear  # noqa: F401

    again = "torch.export.save(program, FILE)"
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is no exported program",
            found="no such file" if not path.exists() else "no archive",
            fix=again,
        )
    if is_compiled(path):
        raise ModelError(
            f"{path} holds compiled code, which has no graph to look at",
            found="a package of AOTInductor",
            fix="the program it was made of, or a bundle of --backend onnx or eager",
        )
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{path} is no exported program",
            found=first_line(error, most=200),
            fix=again,
        ) from error
    return view_of_program(program, path)


def view_of_program(program: ExportedProgram, path: Path | None = None) -> View:
    """The graph of a program, its weights as stored values."""
    signature = program.graph_signature
    weights = {spec.arg.name for spec in signature.input_specs if spec.kind.name != "USER_INPUT"}
    values: dict[FxNode, Value] = {}
    nodes = tuple(_nodes(program.graph_module, values, weights))
    given = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in weights]
    outputs = program.graph.output_node().all_input_nodes
    return View(
        kind="program",
        nodes=nodes,
        path=path,
        inputs=tuple(values[node] for node in given if node in values),
        outputs=tuple(values[node] for node in outputs if node in values),
    )


def _nodes(
    module: GraphModule, values: dict[FxNode, Value], weights: set[str], inside: str = ""
) -> Iterator[Node]:
    for node in module.graph.nodes:
        made = _values(node, stored=node.name in weights or node.op == "get_attr")
        if len(made) == 1:
            values[node] = made[0]
        if node.op != "call_function":
            continue
        target = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            op, domain = f"higher_order.{target.name()}", "higher_order"
        elif isinstance(target, torch._ops.OpOverload):
            domain, _, short = target.name().partition("::")
            op = f"{domain}.{short.split('.')[0]}"
        else:  # Arithmetic on sizes, and taking tuples apart.
            continue
        arguments = _arguments(node)
        yield Node(
            label=inside + node.name, op=op, domain=domain,
            attributes={k: v for k, v in arguments.items() if not _has_node(v)},
            inputs=tuple(_inputs(arguments, values)), outputs=tuple(made),
            module=module_path(node) if node.meta.get("nn_module_stack") else "",
        )  # fmt: skip
        for argument in node.all_input_nodes:
            held = getattr(module, str(argument.target), None) if argument.op == "get_attr" else 0
            if isinstance(held, GraphModule):
                yield from _nodes(held, values, weights, f"{inside}{node.name}/")


def _arguments(node: FxNode) -> Mapping[str, Any]:
    """The arguments of a call by name, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)}
    found: dict[str, Any] = {}
    for number, argument in enumerate(schema.arguments):
        if number < len(node.args):
            found[argument.name] = node.args[number]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def _inputs(arguments: Mapping[str, Any], values: Mapping[FxNode, Value]) -> Iterator[Value]:
    for argument in arguments.values():
        for item in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(item, FxNode) and item in values:
                yield values[item]


def _has_node(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(item, FxNode) for item in items)


def _values(node: FxNode, *, stored: bool) -> list[Value]:
    example = node.meta.get("val")
    if not isinstance(example, (tuple, list)):
        return [_value(node.name, example, stored=stored)]
    return [_value(f"{node.name}[{i}]", item, stored=stored) for i, item in enumerate(example)]


def _value(name: str, example: Any, *, stored: bool) -> Value:
    if isinstance(example, torch.SymInt):
        return Value(name=name, dtype="size", shape=(), data_dependent=_unknown(example))
    if not isinstance(example, torch.Tensor):
        return Value(name=name, initializer=stored)
    return Value(
        name=name,
        dtype=str(example.dtype).removeprefix("torch."),
        shape=tuple(size if isinstance(size, int) else None for size in example.shape),
        initializer=stored,
        data_dependent=any(_unknown(size) for size in example.shape),
    )


def _unknown(size: Any) -> bool:
    """Whether a size is known at run time only, from what the data are."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(size, torch.SymInt) and bool(free_unbacked_symbols(size))
