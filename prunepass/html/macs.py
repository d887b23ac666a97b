"""Multiply-accumulates of each part, before and after."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.charts import bars
from prunepass.html.facts import Facts
from prunepass.html.markup import section, tag


def macs(facts: Facts) -> Markup | None:
    """What each part of the program costs."""
    if not facts.parts:
        return None
    most = max(max(pair) for pair in facts.parts.values()) or 1
    rows = [
        (name, now / most, dense / most, f"{dense / 1e6:.1f} \u2192 {now / 1e6:.1f} M")
        for name, (dense, now) in facts.parts.items()
    ]
    return section(
        "macs", "Multiply-accumulates, part by part",
        bars(rows, caption="Dense, then compressed, one picture; FLOPs are twice that"),
        tag("p", "Counted by formula, scoring included: a saving in theory.", class_="note"),
    )  # fmt: skip
