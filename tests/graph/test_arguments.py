"""Arguments of nodes, which nest."""

from __future__ import annotations

from prunepass.graph.arguments import substitute


def test_substitute_replaces_one_entry() -> None:
    value = (1, [2, {"a": (3, 4)}])
    assert substitute(value, (1, 1, "a", 0), 9) == (1, [2, {"a": (9, 4)}])
    assert value == (1, [2, {"a": (3, 4)}])
    assert substitute(value, (), 7) == 7
