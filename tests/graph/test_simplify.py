from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.graph import meta
from prunepass.graph.simplify import drop_no_ops, fold_duplicates


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        dropped = nn.functional.dropout(x.sin(), 0.3, training=self.training)
        pairs = (x.sum(1) + 1, x.sum(1) + 1.0, x.sum((1,)) + 1, x.cos() @ x.mT, x.cos() @ x.mT)
        return dropped.sum() + sum(part.sum() for part in pairs)


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.rand(5) - torch.rand(5) + x


def exported(model: nn.Module) -> ExportedProgram:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=generator)
    return torch.export.export(model.eval(), (x,), strict=False)


def targets(program: ExportedProgram) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


def test_dropout_goes_and_its_label_moves() -> None:
    program = exported(Twice())
    (node,) = [n for n in program.graph.nodes if n.target is torch.ops.aten.dropout.default]
    source = node.args[0]
    meta.add_label(node, "site:output")
    assert drop_no_ops(program.graph) == 1
    program.graph.lint()
    assert "aten.dropout.default" not in targets(program)
    assert meta.labels(source) == ("site:output",)


def test_equal_operations_become_one() -> None:
    program = exported(Twice())
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    before = program.module(check_guards=False)(x)
    products = [n for n in program.graph.nodes if n.target is torch.ops.aten.matmul.default]
    meta.add_label(products[1], "second")
    assert fold_duplicates(program.graph) >= 4
    program.graph.lint()
    program.graph_module.recompile()
    assert targets(program).count("aten.matmul.default") == 1
    assert meta.labels(products[0]) == ("second",)
    assert torch.equal(program.module(check_guards=False)(x), before)


def test_one_and_one_point_zero_are_not_equal() -> None:
    program = exported(Twice())
    fold_duplicates(program.graph)
    constants = [
        n.args[1]
        for n in program.graph.nodes
        if n.target is torch.ops.aten.add.Tensor and not isinstance(n.args[1], torch.fx.Node)
    ]
    assert sorted(type(c).__name__ for c in constants if c == 1) == ["float", "int"]


def test_random_numbers_stay_apart() -> None:
    program = exported(Random())
    assert fold_duplicates(program.graph) == 0
    assert targets(program).count("aten.rand.default") == 2
