"""The plan that was carried out."""

from __future__ import annotations

import json

from markupsafe import Markup

from prunepass.html.facts import Facts
from prunepass.html.markup import section, table, tag


def plan(facts: Facts) -> Markup:
    """Steps as a table, and the whole plan as text."""
    rows = [
        (
            step["site"],
            step["kind"],
            step["rule"],
            step["action"] if step["kind"] == "reduce_tokens" else "",
            f"{step['keep']:g}",
        )
        for step in facts.plan.get("steps", ())
    ]
    steps = (
        table(("site", "kind", "rule", "action", "keep"), rows, numbers=(4,),
              caption=f"{len(rows)} steps of method {facts.plan['method']}")
        if rows
        else tag("p", "No step: the engine computes what the dense one does.")
    )  # fmt: skip
    text = json.dumps(dict(facts.plan), indent=2)
    whole = tag("details", tag("summary", "plan.json"), tag("pre", text, tabindex="0"))
    return section("plan", "The plan", steps, whole)
