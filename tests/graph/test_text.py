"""Golden texts of programs. PRUNEPASS_WRITE_GOLDEN=1 writes them anew; read the difference."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prunepass.graph.text import text
from prunepass.plans import Step
from prunepass.rules.table import UNREAD
from tests.conftest import Captured, Reduced
from tests.steps import step

FOLDER = Path(__file__).resolve().parents[1] / "golden"
GOLDEN: dict[str, tuple[str, list[Step]]] = {
    "drop_at_attention": ("class", [step("block[0].attention", "received-attention", 16)]),
    "drop_at_output": ("class", [step("block[1].output", "random", 12)]),
    "merge_then_drop": (
        "class",
        [
            step("block[0].attention", "key-norm", 0.75, "merge"),
            step("block[1].output", "tome", 0.7),
        ],
    ),
    "merge_and_mean": ("registers", [step("block[1].attention", "tome", 15, "merge")]),
    "live_ins": ("rotary", [step("block[1].attention", "random", 12)]),
    "unread": ("class", [step("block[2].attention", UNREAD, 1)]),
}


def check(name: str, found: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("PRUNEPASS_WRITE_GOLDEN") == "1":
        path.write_text(found)
    assert found == path.read_text(), f"{path.name}: PRUNEPASS_WRITE_GOLDEN=1 writes it anew"


@pytest.mark.parametrize("name", list(GOLDEN))
def test_reduced_programs(reduced: Reduced, name: str) -> None:
    model, steps = GOLDEN[name]
    check(name, text(reduced(model, steps)[0]))


def test_captured_program(captured: Captured) -> None:
    check("captured", text(captured("class")))


def test_does_not_depend_on_node_names(captured: Captured) -> None:
    program = captured("class")
    exported = torch.export.export(
        program.module(check_guards=False),
        program.example_inputs[0],
        dynamic_shapes=({0: torch.export.Dim("other", min=1)},),
        strict=False,
    )
    for index, node in enumerate(exported.graph.nodes):
        if node.op == "call_function":
            node.name = f"renamed_{index}"
    lost = ("query", "key", "value")  # labels of tuple items do not survive
    kept = [line for line in text(program).splitlines() if not line.endswith(lost)]
    assert set(kept) <= set(text(exported).splitlines())


def test_other_dynamic_sizes_are_told_apart() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], dim=1) * 0.1

    sizes = {0: torch.export.Dim("n", min=2), 1: torch.export.Dim("m", min=2)}
    program = torch.export.export(Sum(), (torch.ones(3, 5),), dynamic_shapes=(sizes,))
    assert text(program) == (
        "%0 = input -> [B, D1]\n"
        "%1 = cat([%0, %0], 1) -> [B, 2*D1]\n"
        "%2 = mul.Tensor(%1, 0.1) -> [B, 2*D1]\n"
        "return [%2]\n"
    )
