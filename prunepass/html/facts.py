"""What a report tells, as plain data; a section whose facts are not there is not there either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Picture:
    """One picture with what became of its patches.

    Attributes:
        name: Of its file.
        panels: (title, description, image) of the picture itself and behind each reduction; the
            image as bytes of a JPEG file.
    """

    name: str
    panels: tuple[tuple[str, str, bytes], ...]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One row of what was given for what.

    Attributes:
        name: Method, or what was done instead.
        macs_ratio: MACs relative to the dense model.
        agreement: Share of pictures with the same first class as the dense model.
        kl: Divergence from the dense model, nats.
        kl_error: Its standard error.
        top1: Share of pictures it gets right, None without labels.
        own: Whether it is the bundle itself.
    """

    name: str
    macs_ratio: float
    agreement: float
    kl: float
    kl_error: float
    top1: float | None = None
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a report may tell of one bundle.

    Attributes:
        report: What `report.json` says.
        plan: Method, notes and steps, as `plan.json` says.
        parts: Part of the program -> MACs dense and compressed.
        runs: Engine -> milliseconds of each run, batch 1.
        bench: What `prunepass bench --json` said.
        quality: The bundle, and what stands beside it at the same cost.
        quality_note: On what it was measured.
        missing: What is not told, and why.
        pictures: What became of the patches of some pictures.
        scores: Score -> layer -> value, and whether much is important.
        findings: What `prunepass doctor --json` found.
    """

    report: Mapping[str, Any]
    plan: Mapping[str, Any]
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    bench: Mapping[str, Any] = field(default_factory=dict)
    quality: tuple[Quality, ...] = ()
    quality_note: str = ""
    missing: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    scores: Mapping[str, tuple[Mapping[str, float], bool]] = field(default_factory=dict)
    findings: Sequence[Mapping[str, Any]] | None = None

    @property
    def of_pictures(self) -> bool:
        """Whether it is a model of pictures alone."""
        return str(self.report.get("example", "a picture")) == "a picture"

    @property
    def ratio(self) -> float:
        """MACs relative to the dense model."""
        return float(self.report.get("macs_ratio", 1.0))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two engines at one batch.

    Attributes:
        batch: Examples of a run.
        before, now: What the engines are called.
        before_ms, now_ms: Median of their runs.
        speedup: Of the second one, None where it was not told.
        interval: From where to where that may lie.
        macs_ratio: MACs of the second one relative to the first, None where not told.
    """

    batch: int
    before: str
    now: str
    before_ms: float
    now_ms: float
    speedup: float | None
    interval: tuple[float, float] | None = None
    macs_ratio: float | None = None


def compared(bench: Mapping[str, Any]) -> list[Compared]:
    """Engines against the first of them, batch by batch, as `prunepass bench --json` tells them."""
    found = []
    for row in bench.get("batches", ()):
        if {"batch", "dense_ms", "compressed_ms", "speedup"} <= set(row):
            engines = [
                {"name": name, "median_ms": row[f"{name}_ms"]} for name in ("dense", "compressed")
            ]
            engines[1] |= {key: row[key] for key in (*_GAIN, "macs_ratio") if key in row}
        else:
            engines = [e for e in row.get("engines", ()) if {"name", "median_ms"} <= set(e)]
        for engine in engines[1:]:
            low, high = (engine.get(key) for key in _GAIN[1:])
            found.append(
                Compared(
                    batch=row["batch"], before=engines[0]["name"], now=engine["name"],
                    before_ms=engines[0]["median_ms"], now_ms=engine["median_ms"],
                    speedup=engine.get("speedup"),
                    interval=None if low is None or high is None else (low, high),
                    macs_ratio=engine.get("macs_ratio"),
                )
            )  # fmt: skip
    return found


_GAIN = ("speedup", "speedup_low", "speedup_high")
