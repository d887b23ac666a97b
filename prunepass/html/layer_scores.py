"""How important each layer is."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.charts import bars
from prunepass.html.facts import Facts
from prunepass.html.markup import section


def layer_scores(facts: Facts) -> Markup | None:
    """Bars of importance, one table a score."""
    made = []
    for name, (values, high_matters) in facts.scores.items():
        low, high = min(values.values()), max(values.values())
        span = (high - low) or 1.0
        rows = []
        for layer, value in values.items():
            share = (value - low) / span
            rows.append((layer, share if high_matters else 1 - share, None, f"{value:.4g}"))
        more = "" if high_matters else ", less is more important"
        made.append(bars(rows, caption=f"Importance by {name}{more}"))
    return section("layers", "Layer scores", *made) if made else None
