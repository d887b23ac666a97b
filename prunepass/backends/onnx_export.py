"""From a program to an ONNX model, without the exporter's slow detours."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from prunepass.backends import (
    onnx_arithmetic,
    onnx_attention,
    onnx_operator,
    onnx_parts,
    onnx_tokens,
    onnx_told,
)
from prunepass.backends.onnx_legal import EXPORTED, Target, check_opset, legalise
from prunepass.backends.onnx_precision import Half, halve


def export(
    program: ExportedProgram,
    *,
    opset: int,
    target: Target = "onnxruntime",
    half: Half | None = None,
    inline: bool = True,
) -> Any:
    """The program as a `torch.onnx.ONNXProgram`, constants folded. The program stays as it is.

    Args:
        program: Any program.
        opset: Operator set of the file.
        target: Which runtime it is for, see `onnx_legal`.
        half: Precision of products, see `onnx_precision`; None for that of the program.
        inline: Whether nothing of ours is called: a scan is written out where it stands, and a
            sparse product is a dense one of what stays. Else a scan is a function, for which a
            session may have an operator of its own, and a sparse product such an operator.

    Raises:
        UsageError: The opset is one that is not written.
        BackendError: The program has no form that is legal there.

    The exporter traces a program once more to decompose what it cannot translate, which takes three
    quarters of an export. A program whose operations it knows goes without; whether it knows them
    shows when it translates them.
    """
    check_opset(opset)
    written = max(opset, EXPORTED)
    translations = {
        **onnx_arithmetic.translations(),
        **onnx_attention.translations(whole=target != "tensorrt"),
        **onnx_tokens.translations(loops=target != "tensorrt"),
        **onnx_operator.translations(compiled=not inline),
    }
    with _quiet():
        try:
            exported = _translate(_Translatable.of(program), written, translations)
        except Exception:
            exported = _translate(program, written, translations)
        model = exported.model
        scans = any(node.op_type == onnx_tokens.SCAN_FUNCTION for node in model.graph)
        if scans and inline:
            onnx_tokens.add_scan(model, opset=written)
        with onnx_told.held(model, exported.exported_program or program):
            _tidy(model)
            lowered = legalise(model, opset=opset, target=target)
            halved = half is not None and halve(model, half) > 0
            if lowered or halved:
                _clean(model)
        if scans and not inline:
            onnx_tokens.add_scan(model, opset=opset)
    return exported


def _translate(program: ExportedProgram, opset: int, translations: Mapping[Any, Any]) -> Any:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        verbose=False,
        optimize=False,
        custom_translation_table=dict(translations),
    )
    assert exported is not None
    assert exported.exported_program is not None
    onnx_parts.write_parts(exported.model, exported.exported_program)
    return exported


class _Translatable(ExportedProgram):
    """A program that is decomposed only where that changes something."""

    @classmethod
    def of(cls, program: ExportedProgram) -> _Translatable:
        """A copy that shares the weights; casts are spelled as the exporter knows them."""
        made = copy.copy(program)
        made.__class__ = cls
        assert isinstance(made, cls)
        graph = copy.deepcopy(program.graph)
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.to.dtype):
            node.target = torch.ops.aten._to_copy.default
            node.args, node.kwargs = node.args[:1], {"dtype": node.args[1]}
        made._graph_module = GraphModule(program.graph_module, graph)
        return made

    def run_decompositions(
        self,
        decomp_table: Mapping[Any, Callable[..., Any]] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ExportedProgram:
        for node in self.graph.nodes:
            mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
            if decomp_table is None or node.target in decomp_table or mutable:
                return super().run_decompositions(decomp_table, *args, **kwargs)
        return self


def _tidy(model: Any) -> None:
    """Folds constants and duplicates of an `onnx_ir.Model` in place.

    The exporter's own `optimize` also tries some hundred rewrite rules at every node; on 1,500
    nodes that takes longer than the rest of the export and finds nothing that ONNX Runtime misses.
    """
    import onnxscript.optimizer
    from onnx_ir.passes import common

    common.InlinePass()(model)
    _settle_shapes(model)
    onnxscript.optimizer.fold_constants_ir(model)
    _clean(model)


def _clean(model: Any) -> None:
    """Takes away what is there twice or for nothing, in place."""
    import onnx_ir
    from onnx_ir.passes import common

    onnx_ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _settle_shapes(model: Any) -> None:
    """Reshapes to sizes of which one is dynamic take a constant with -1 there.

    The exporter puts that size together at run time, four operations for each reshape.
    """
    import onnx_ir

    for node in list(model.graph):
        shape = node.outputs[0].shape if node.op_type == "Reshape" else None
        if shape is None or node.inputs[1].const_value is not None:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) != 1 or 0 in sizes:
            continue
        constant = onnx_ir.node("Constant", inputs=[], attributes={"value_ints": sizes})
        model.graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own insides; what fails still raises."""
    loggers = [logging.getLogger(n) for n in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [log.level for log in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for log in loggers:
                log.setLevel(logging.ERROR)
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
