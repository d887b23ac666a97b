"""What the planner tried, and what it could have had."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.charts import points
from prunepass.html.facts import Facts
from prunepass.html.markup import section, table, tag


def front(facts: Facts) -> Markup | None:
    """The front of all trials, and why the planner decided so."""
    notes = facts.plan.get("notes", {})
    found = [row for row in notes.get("front") or () if isinstance(row, list) and len(row) == 5]
    if not found:
        return None
    places = [(ratio, kl, f"{recipe}: KL {kl}") for _, ratio, kl, _, recipe in found]
    rows = [
        (recipe, f"{ratio:.3f}", f"{kl:.4f}", f"{agreement:.1%}")
        for _, ratio, kl, agreement, recipe in found
    ]
    why = [tag("li", text) for text in notes.get("why") or ()]
    drawn = (
        points(places, across="MACs relative to dense", up="KL, nats",
               title="Trials that no other one beats in cost and divergence")
        if len(places) > 1
        else None
    )  # fmt: skip
    return section(
        "front", "What else could be had",
        drawn,
        table(("recipe", "MACs", "KL", "agreement"), rows, numbers=(1, 2, 3),
              caption="Trials that no other one beats, on the pictures that choose"),
        tag("h3", "Why it decided so") if why else None,
        tag("ul", *why) if why else None,
    )  # fmt: skip
