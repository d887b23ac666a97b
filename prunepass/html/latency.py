"""How long the engines take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from prunepass.html.charts import distribution
from prunepass.html.facts import Facts
from prunepass.html.markup import section, table, tag


def latency(facts: Facts) -> Markup | None:
    """The distribution of runs, and medians by batch."""
    inside: list[object] = []
    if facts.runs:
        count = len(next(iter(facts.runs.values())))
        inside += [
            distribution(facts.runs, unit="ms", title="Milliseconds of each run, batch 1"),
            tag("p", f"{count} runs of each engine, taken in turns; the box holds the middle "
                     "half.", class_="note"),
        ]  # fmt: skip
    rows = [
        (
            str(row["batch"]),
            f"{row['dense_ms']:.1f} ms",
            f"{row['compressed_ms']:.1f} ms",
            f"{row['speedup']:.2f}x{_interval(row)}",
        )
        for row in facts.bench.get("batches", ())
        if {"batch", "dense_ms", "compressed_ms", "speedup"} <= set(row)
    ]
    if rows:
        inside.append(
            table(("batch", "dense", "compressed", "speed-up"), rows,
                  caption="Medians, engines taken in turns", numbers=(1, 2, 3))
        )  # fmt: skip
    return section("latency", "Time", *inside) if inside else None


def _interval(row: Mapping[str, Any]) -> str:
    """The interval of a speed-up, where it was told."""
    if not {"speedup_low", "speedup_high"} <= set(row):
        return ""
    return f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
