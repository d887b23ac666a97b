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
    def ratio(self) -> float:
        """MACs relative to the dense model."""
        return float(self.report.get("macs_ratio", 1.0))
