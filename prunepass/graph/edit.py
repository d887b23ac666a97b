"""Opening a program for editing, and sealing the edited graph as a program again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils._sympy.value_ranges import ValueRanges

from prunepass.errors import InternalError, PlanError, UnsupportedGraph, first_line
from prunepass.graph import meta
from prunepass.graph.simplify import drop_checks, drop_no_ops, fold_duplicates


def open_module(program: ExportedProgram) -> GraphModule:
    """A graph module that computes what the program computes and may be edited.

    Parameters are shared with the program, the graph is a copy. Inserted nodes may call any
    Python function of tensors: `seal` traces through it.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def seal(
    module: GraphModule,
    program: ExportedProgram,
    *,
    batch: int | None = None,
    told: Mapping[str, Node] | None = None,
) -> ExportedProgram:
    """The edited graph as a program, with the input shapes and dynamic sizes of `program`.

    Args:
        module: What `open_module` gave, edited.
        program: Where it came from.
        batch: Fixes axis 0 of all inputs; None leaves what is dynamic dynamic.
        told: Label -> tensor of the edited graph; what it becomes in the program has that label,
            whatever tracing makes of it.

    Raises:
        UnsupportedGraph: The edited graph does not run, e.g. a frozen size was missed.
    """
    args, _ = program.example_inputs
    shapes = dynamic_shapes(program)
    if batch is not None:
        args, shapes = tuple(_with_batch(x, batch) for x in args), None
    if not told:
        return seal_with(module, tuple(args), shapes)
    own = _add_outputs(module, list(told.values()))
    sealed = seal_with(module, tuple(args), shapes)
    for label, node in zip(told, _take_outputs(sealed, program, own), strict=True):
        meta.add_label(node, label)
    return sealed


def _add_outputs(module: GraphModule, nodes: list[Node]) -> int:
    """Lets an opened graph return more tensors behind its own; how many its own are."""
    (output,) = module.graph.find_nodes(op="output")
    own = output.args[0]
    codegen: Any = module.graph._codegen
    output.args = ((*own, *nodes),)
    whole = tree_unflatten([0] * len(own), codegen.pytree_info.out_spec)
    spec = tree_flatten((whole, [0] * len(nodes)))[1]
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=spec)
    return len(own)


def _take_outputs(sealed: ExportedProgram, like: ExportedProgram, own: int) -> list[Node]:
    """The outputs of a program behind the first `own`, which are outputs no more."""
    (output,) = sealed.graph.find_nodes(op="output")
    every = list(output.args[0])
    output.args = (tuple(every[:own]),)
    del sealed.graph_signature.output_specs[own:]
    (mine, *_), (given, *_) = sealed.module_call_graph, like.module_call_graph
    assert mine.signature is not None
    assert given.signature is not None
    mine.signature.out_spec = given.signature.out_spec
    del mine.signature.outputs[own:]
    sealed.graph_module.recompile()
    return every[own:]


def seal_loose(module: GraphModule, program: ExportedProgram) -> ExportedProgram:
    """As `seal`, of a program that went through `loosen`: its sizes are inferred anew.

    Raises:
        UnsupportedGraph: The edited graph does not run.
    """
    args, _ = program.example_inputs
    sealed = seal_with(module, tuple(args), dynamic_shapes(program, bounds=False))
    loosen(sealed)
    return sealed


def seal_with(module: GraphModule, args: tuple[torch.Tensor, ...], shapes: Any) -> ExportedProgram:
    """The edited graph as a program of other inputs than it came with.

    Args:
        module: What `open_module` gave, edited.
        args: Example inputs, one a placeholder, in their order.
        shapes: The `dynamic_shapes` of `torch.export`, None for sizes that are all fixed.

    Raises:
        UnsupportedGraph: The edited graph does not run.
    """
    drop_no_ops(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    try:
        # Hardly two of the shapes in one trace are alike: looking them up costs more than it saves.
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False), torch.no_grad():
            sealed = torch.export.export(
                module,
                args,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except ValueError as error:
        raise PlanError(first_line(error)) from error
    except Exception as error:
        raise UnsupportedGraph(
            "the rewritten graph does not trace",
            found=first_line(error),
            fix="report the model: the analysis should have refused this site",
        ) from error
    drop_checks(sealed.graph)
    fold_duplicates(sealed.graph)
    sealed.graph.eliminate_dead_code()
    sealed.graph_module.recompile()
    return sealed


def loosen(program: ExportedProgram) -> None:
    """Lets every dynamic size of a program be as small as 1.

    Tracing takes for granted that there are two of everything, and reckons from there; what it
    writes down works for one as well.
    """
    for symbol, bounds in program.range_constraints.items():
        program.range_constraints[symbol] = ValueRanges(1, bounds.upper)


def dynamic_shapes(program: ExportedProgram, *, bounds: bool = True) -> Any:
    """The `dynamic_shapes` argument that exports a module with the program's dynamic sizes.

    Args:
        program: Any program.
        bounds: Whether the range of each size is that of the program; else it is inferred anew.
    """
    dims: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    inputs = {
        spec.arg.name: spec
        for spec in program.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT"
    }
    leaves: list[dict[int, Any] | None] = []
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name not in inputs:
            continue
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor):
            leaves.append(None)
            continue
        spec: dict[int, Any] = {}
        for axis, size in enumerate(val.shape):
            if isinstance(size, torch.SymInt):
                name = str(size.node.expr)
                if not bounds or not name.isidentifier():
                    spec[axis] = Dim.AUTO
                    continue
                spec[axis] = dims.setdefault(name, _dim(program, size, f"d_{name}"))
        leaves.append(spec or None)
    args, kwargs = program.example_inputs
    flat, tree = torch.utils._pytree.tree_flatten((args, kwargs or {}))
    if len(flat) != len(leaves):
        raise InternalError(
            "example inputs and placeholders of a program differ in number",
            found=f"{len(flat)} and {len(leaves)}",
        )
    args_shapes, kwargs_shapes = torch.utils._pytree.tree_unflatten(leaves, tree)
    if not kwargs_shapes:
        return args_shapes
    shapes.update(kwargs_shapes)
    raise InternalError("programs with keyword inputs cannot be sealed", found=str(list(shapes)))


def _dim(program: ExportedProgram, size: torch.SymInt, name: str) -> Any:
    bounds = program.range_constraints.get(size.node.expr)
    low = max(1, int(bounds.lower)) if bounds is not None else 1
    if bounds is None or bounds.upper > 2**31:
        return Dim(name, min=low)
    return Dim(name, min=low, max=int(bounds.upper))


def _with_batch(x: Any, batch: int) -> Any:
    return x[:1].expand(batch, *x.shape[1:]).contiguous() if isinstance(x, torch.Tensor) else x
