"""How long the engines take."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.charts import distribution
from prunepass.html.facts import Compared, Facts, compared
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
    found = compared(facts.bench)
    if found:
        columns = dict.fromkeys((row.before, row.now) for row in found)
        for before, now in columns:
            rows = [
                (
                    str(row.batch),
                    _macs(row),
                    f"{row.before_ms:.1f} ms",
                    f"{row.now_ms:.1f} ms",
                    _gain(row),
                )
                for row in found
                if (row.before, row.now) == (before, now)
            ]
            inside.append(
                table(("batch", "MACs", before, now, "speed-up"), rows,
                      caption="Medians, engines taken in turns", numbers=(1, 2, 3, 4))
            )  # fmt: skip
    return section("latency", "Time", *inside) if inside else None


def _macs(row: Compared) -> str:
    """A share of the first engine's multiply-accumulates, where it was told."""
    return "" if row.macs_ratio is None else f"{row.macs_ratio:.3f}"


def _gain(row: Compared) -> str:
    """A speed-up, with its interval where it was told."""
    if row.speedup is None:
        return ""
    if row.interval is None:
        return f"{row.speedup:.2f}x"
    low, high = row.interval
    return f"{row.speedup:.2f}x ({low:.2f} to {high:.2f})"
