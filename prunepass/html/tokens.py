"""Tokens behind each reduction."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.charts import bars
from prunepass.html.facts import Facts
from prunepass.html.markup import section, tag


def tokens(facts: Facts) -> Markup | None:
    """How many tokens are left, site by site."""
    found = facts.report.get("tokens") or {}
    if not found:
        return None
    whole = next(iter(found.values()))[0]
    rows = [
        (site, after / whole, before / whole, f"{before} \u2192 {after}")
        for site, (before, after) in found.items()
    ]
    unread = any(step.get("rule") == "unread" for step in facts.plan.get("steps", ()))
    note = (
        tag("p", "Behind the last attention only the class token is read, so nothing else is "
                 "computed there: that part is exact.", class_="note")
        if unread
        else None
    )  # fmt: skip
    return section(
        "tokens", "Tokens, layer by layer",
        bars(rows, caption=f"Of {whole} tokens, so many arrive and so many go on"), note,
    )  # fmt: skip
