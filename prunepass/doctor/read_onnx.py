"""An ONNX file as a view."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunepass.doctor.onnx_values import attribute_of, constant_output, shaped, stored
from prunepass.doctor.view import Node, Value, View
from prunepass.errors import ModelError

_LARGE = 4096
"""Bytes of a weight from which on its content does not matter."""


def read_onnx(path: Path) -> View:
    """The graph of an ONNX file, its functions written out where they are called.

    Raises:
        ModelError: There is no such file, it is no ONNX file, or its graph is broken.
    """
    import onnx

    if not path.is_file():
        raise ModelError(
            f"cannot read {path}", found="no such file", fix="the path of an ONNX file"
        )
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ModelError(
            f"{path} is no ONNX file",
            found=f"{type(error).__name__}: {_line(error)}",
            fix="export it again; a text file or an archive is none",
        ) from error
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{path} is no ONNX file",
            found="no operations" if model.opset_import else "no operator set",
            fix="export it again",
        )
    try:
        return view_of_model(model, path)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} is damaged",
            found=f"{type(error).__name__}: {_line(error)}",
            fix="export it again",
        ) from error


def view_of_model(model: Any, path: Path | None = None) -> View:
    """The graph of an `onnx.ModelProto`, whose large weights are let go."""
    import onnx
    from onnx import inliner

    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    weights = list(_tensors(model.graph))
    external = tuple(dict.fromkeys(_location(t) for t in weights if t.external_data))
    constants = {tensor.name: stored(tensor) for tensor in model.graph.initializer}
    for tensor in weights:
        if len(tensor.raw_data) > _LARGE:
            tensor.ClearField("raw_data")
    functions = {}
    if model.functions:
        defined = {(_domain(f.domain), f.name) for f in model.functions}
        called = [(_domain(n.domain), n.op_type, n.name) for n in model.graph.node]
        functions = {(d, op): name for d, op, name in called if (d, op) in defined}
        model = inliner.inline_local_functions(model)
    with contextlib.suppress(Exception):  # Else types are known as far as the file tells them.
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    nodes = tuple(_nodes(model.graph, {}, constants, opsets, path))
    names = {tensor.name for tensor in model.graph.initializer}
    return View(
        kind="onnx",
        nodes=nodes,
        path=path,
        inputs=tuple(shaped(v) for v in model.graph.input if v.name not in names),
        outputs=tuple(shaped(v) for v in model.graph.output),
        opsets=opsets,
        ir_version=model.ir_version,
        functions=functions,
        external=external,
    )


def _nodes(
    graph: Any,
    outer: dict[str, Value],
    constants: dict[str, Value],
    opsets: dict[str, int],
    path: Path | None,
    inside: str = "",
) -> Iterator[Node]:
    scope = dict(outer)
    told = {v.name: shaped(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        scope[tensor.name] = constants.get(tensor.name) or stored(tensor)
    for given in graph.input:
        scope.setdefault(given.name, told[given.name])
    for number, proto in enumerate(graph.node):
        label = inside + (proto.name or f"{proto.op_type}#{number}")
        for name in proto.input:
            if name and name not in scope:
                raise ModelError(
                    f"{path or 'the model'} is damaged",
                    found=f"{label} reads {name!r}, which nothing before it makes",
                    fix="export it again",
                )
        inputs = tuple(scope[name] if name else None for name in proto.input)
        attributes = {a.name: attribute_of(a) for a in proto.attribute}
        made = tuple(
            constant_output(proto.op_type, attributes, inputs, told.get(name) or Value(name=name))
            for name in proto.output
        )
        scope.update({value.name: value for value in made if value.name})
        yield Node(
            label=label, op=proto.op_type, domain=_domain(proto.domain),
            opset=opsets.get(_domain(proto.domain), 0), attributes=attributes, inputs=inputs,
            outputs=made, module=_module(proto),
        )  # fmt: skip
        for attribute in proto.attribute:
            for part in (attribute.g, *attribute.graphs):
                if part.node:
                    where = f"{label}/{attribute.name}/"
                    yield from _nodes(part, scope, {}, opsets, path, where)


def _tensors(graph: Any) -> Iterator[Any]:
    """All stored tensors of a graph and what it holds."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for part in (attribute.g, *attribute.graphs):
                if part.node:
                    yield from _tensors(part)


def _location(tensor: Any) -> str:
    return {entry.key: entry.value for entry in tensor.external_data}.get("location", "")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _module(proto: Any) -> str:
    """The module a node came from, as torch's exporter notes it down."""
    for entry in proto.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [name for _, name in re.findall(r"(['\"])(.*?)\1", entry.value)]
            # A model that runs a slice of its layers: `layers.slice(None, 2, None).0`.
            return re.sub(r"slice\([^)]*\)\.", "", scopes[-2]) if len(scopes) > 1 else ""
    return ""


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
