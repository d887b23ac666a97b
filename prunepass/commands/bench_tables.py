"""The tables of `prunepass bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunepass.benchmark.side_by_side import Standing, UnderLoad
from prunepass.commands.request import Say

_STANDINGS = ("batch", "engine", "MACs", "median", "quartiles", "p99", "a second", "speed-up",
              "realised", "verdict")  # fmt: skip
_LOAD = ("callers", "engine", "batch", "a second, all together", "speed-up", "waiting, median",
         "p99")  # fmt: skip
_MEMORY = ("batch", "engine", "peak memory", "of it libraries", "loading", "first run", "energy")
_SUFFERS = 0.9
"""Share of the gain with few callers below which it is said to suffer from many."""


def show_standings(standings: Sequence[Standing], *, say: Say) -> None:
    """Prints how subjects stand, batch by batch."""
    say.table(_STANDINGS, [_standing(standing) for standing in standings])


def _standing(standing: Standing) -> list[str]:
    timing, gain = standing.timing, standing.gain
    share = standing.macs_ratio
    low, high = timing.quartiles_ms
    return [
        str(standing.batch), standing.subject.name, "" if share is None else f"{share:.3f}",
        f"{timing.median_ms:.2f} ms", f"{low:.2f} to {high:.2f}", f"{timing.p99_ms:.2f} ms",
        f"{standing.per_second:.1f}", "" if gain is None else str(gain),
        "" if standing.realised is None else f"{standing.realised:.2f}",
        "" if gain is None else gain.verdict,
    ]  # fmt: skip


def show_load(loads: Sequence[UnderLoad], *, say: Say) -> None:
    """Prints what subjects do for several callers."""
    rows = [
        [
            str(u.load.callers), u.subject.name, str(u.batch), f"{u.per_second:.1f}",
            "" if u.ratio is None else f"{u.ratio:.2f}x", f"{u.load.waiting.median_ms:.2f} ms",
            f"{u.load.waiting.p99_ms:.2f} ms",
        ]
        for u in loads
    ]  # fmt: skip
    say.table(_LOAD, rows)


def judged(loads: Sequence[UnderLoad]) -> list[str]:
    """A sentence a subject: whether its gain holds where many call at once."""
    said = []
    for name in dict.fromkeys(u.subject.name for u in loads if u.ratio is not None):
        mine = sorted((u for u in loads if u.subject.name == name), key=lambda u: u.load.callers)
        few, many = mine[0], mine[-1]
        if few.load.callers == many.load.callers:
            continue
        assert few.ratio is not None
        assert many.ratio is not None
        suffers = many.ratio < _SUFFERS * few.ratio
        said.append(
            f"{name}: {few.ratio:.2f}x with {few.load.callers} calling, {many.ratio:.2f}x with "
            f"{many.load.callers}: the gain {'suffers' if suffers else 'holds'} under load"
        )
    return said


def show_memory(found: Sequence[Mapping[str, Any]], *, say: Say) -> None:
    """Prints what processes of their own took."""
    rows = [
        [
            str(f["batch"]), f["name"], f"{f['peak_mb']:.0f} MB", f"{f['libraries_mb']:.0f} MB",
            f"{f['load_s']:.1f} s", f"{f['first_ms']:.1f} ms",
            "not told" if f["joules"] is None else f"{f['joules']:.2f} J each",
        ]
        for f in found
    ]  # fmt: skip
    say.table(_MEMORY, rows)
