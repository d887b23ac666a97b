"""Which part of a model a node belongs to, before and after a reduction."""

from __future__ import annotations

from collections import Counter

from prunepass.graph import meta
from prunepass.graph.parts import BEHIND, BETWEEN, GROUPS, IN_FRONT, Part, parts
from tests.conftest import Captured, Reduced
from tests.steps import step
from tests.tiny_models import DEPTH


def groups_of(found: dict[object, Part], site: str) -> set[str]:
    return {part.group for part in found.values() if part.site == site}


def test_every_call_has_a_part(captured: Captured) -> None:
    graph = captured("class").graph
    found = parts(graph)
    assert set(found) == {n for n in graph.nodes if n.op == "call_function"}
    layers = [f"block[{i}]" for i in range(DEPTH)]
    assert {part.layer for part in found.values()} == {IN_FRONT, *layers, BEHIND}
    assert all(part.group in GROUPS for part in found.values())
    linears = Counter(p for n, p in found.items() if "linear" in str(n.target))
    for i in range(DEPTH):
        assert linears[Part(f"block[{i}].attention", "attention")] == 2
        assert linears[Part(f"block[{i}].mlp", "mlp")] == 2
    assert linears[Part(BEHIND, "other")] == 1
    attentions = [p for n, p in found.items() if "attention" in str(n.target)]
    assert attentions == [Part(f"block[{i}].attention", "attention") for i in range(DEPTH)]


def test_choosing_and_moving_are_told_apart(reduced: Reduced) -> None:
    program, _ = reduced("class", [step("block[0].attention", "tome", 15, action="merge")])
    found = parts(program.graph)
    assert groups_of(found, "block[0].attention") == {"attention", "scoring", "gather"}
    chosen = {str(n.target) for n, p in found.items() if p.group == "scoring"}
    moved = {str(n.target) for n, p in found.items() if p.group == "gather"}
    assert any("topk" in t or "sort" in t for t in chosen)
    assert "aten.bmm.default" in moved
    # The items that a re-export leaves without labels go with what they are taken from.
    items = [n for n in program.graph.nodes if "getitem" in str(n.target) and not meta.labels(n)]
    assert all(found[n] == found[n.args[0]] for n in items if found.get(n.args[0]))
    assert BETWEEN not in {p.site for p in found.values() if p.group in ("attention", "mlp")}


def test_a_part_as_text_and_back() -> None:
    part = Part("block[3].mlp[1]", "mlp")
    assert Part.parse(str(part)) == part
    assert part.layer == "block[3]"
    assert Part(IN_FRONT, "other").layer == IN_FRONT
