"""What every measuring script does with a result: it prints and keeps it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunepass.measure.results import append_result
from prunepass.measure.timing import Timing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "models" / "results"


def record(kind: str, threads: int | None, **row: Any) -> None:
    """Prints a result and appends it to this machine's file."""
    append_result(RESULTS, kind, threads=threads, **row)
    told = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    print(kind, " ".join(f"{k}={v}" for k, v in told.items()), flush=True)


def recorded() -> list[dict[str, Any]]:
    """Every result of every machine, oldest first."""
    return [
        json.loads(line)
        for path in sorted(RESULTS.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def dense_and_compressed(timings: Mapping[str, Timing]) -> dict[str, float]:
    """Medians and shortest runs of both, and the quartiles of the paired ratio."""
    found = {}
    for name in ("dense", "compressed"):
        timing = timings[name]
        found[f"{name}_ms"] = round(timing.median_ms, 2)
        found[f"{name}_min_ms"] = round(1e3 * min(timing.seconds), 2)
    pairs = zip(timings["dense"].seconds, timings["compressed"].seconds, strict=True)
    low, _, high = statistics.quantiles((a / b for a, b in pairs), n=4)
    return {**found, "speedup_q1": round(low, 3), "speedup_q3": round(high, 3)}
