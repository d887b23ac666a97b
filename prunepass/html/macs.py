"""Multiply-accumulates of each part, before and after."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.charts import bars
from prunepass.html.facts import Facts
from prunepass.html.headline import amount
from prunepass.html.markup import section, tag


def macs(facts: Facts) -> Markup | None:
    """What each part of the program costs."""
    if not facts.parts:
        return None
    most = max(max(pair) for pair in facts.parts.values()) or 1
    example = facts.report.get("example", "a picture")
    rows = [
        (name, now / most, dense / most, f"{amount(dense)} \u2192 {amount(now)}")
        for name, (dense, now) in facts.parts.items()
        if dense or now
    ]
    return section(
        "macs", "Multiply-accumulates, part by part",
        bars(rows, caption=f"Dense, then compressed, {example}; FLOPs are twice that"),
        tag("p", "Counted by formula, scoring included: a saving in theory.", class_="note"),
    )  # fmt: skip
