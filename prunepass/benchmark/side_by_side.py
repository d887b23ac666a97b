"""Engines side by side: who is faster than the first of them, alone and under load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunepass.benchmark.subjects import Subject
from prunepass.errors import UsageError
from prunepass.measure.gain import Gain, gain
from prunepass.measure.load import CALLERS, Load, under_load
from prunepass.measure.timing import REST, Timing, interleaved


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one subject stands at one batch.

    Attributes:
        subject: Which one.
        batch: Examples of a run.
        timing: Its runs.
        gain: Over the first subject; None of that one itself.
        macs_ratio: Multiply-accumulates at this batch relative to the first subject, where both
            are known.
        realised: Speed-up times the share of MACs: 1 where every saved operation became saved
            time. None where MACs are not known.
    """

    subject: Subject
    batch: int
    timing: Timing
    gain: Gain | None
    macs_ratio: float | None
    realised: float | None

    @property
    def per_second(self) -> float:
        """Examples a second, one run after the other."""
        return 1e3 * self.batch / self.timing.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.subject.name, "batch": self.batch, **self.timing.to_dict(),
            f"{self.subject.unit}_per_second": self.per_second, **told(self.gain),
            "macs_ratio": self.macs_ratio, "realised": self.realised,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UnderLoad:
    """What one subject does for several callers at once.

    Attributes:
        subject: Which one.
        batch: Examples of a call.
        load: What was measured.
        ratio: Examples a second over those of the first subject; None of that one itself.
    """

    subject: Subject
    batch: int
    load: Load
    ratio: float | None

    @property
    def per_second(self) -> float:
        """Examples a second, all callers together."""
        return self.batch * self.load.median_per_second

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.subject.name, "callers": self.load.callers, "batch": self.batch,
            f"{self.subject.unit}_per_second": self.per_second, "ratio": self.ratio,
            "waiting": self.load.waiting.to_dict(),
        }  # fmt: skip


def side_by_side(
    subjects: Sequence[Subject], *, batch: int, runs: int, rest: float = REST
) -> list[Standing]:
    """How subjects stand at one batch, all of them in turns on the same inputs.

    Args:
        subjects: The first one is what the others are held against.
        batch: Examples of a run.
        runs: Measured runs of each.
        rest: Seconds of pause before each run.
    """
    calls = {subject.name: _silent(subject, batch) for subject in subjects}
    timings = interleaved(calls, (), runs=runs, rest=rest)
    first = subjects[0]
    found = []
    for subject in subjects:
        timing = timings[subject.name]
        gained = None if subject is first else gain(timings[first.name], timing)
        share = macs_ratio(subject, first, batch=batch)
        found.append(
            Standing(
                subject=subject, batch=batch, timing=timing, gain=gained, macs_ratio=share,
                realised=gained.ratio * share if gained and share is not None else None,
            )
        )  # fmt: skip
    return found


def sweep(
    subjects: Sequence[Subject],
    *,
    batch: int,
    callers: Sequence[int] = CALLERS,
    seconds: float = 1.0,
) -> list[UnderLoad]:
    """What subjects do for 1, 8 and 32 callers at once, each with a batch of its own."""
    calls = {subject.name: _silent(subject, batch) for subject in subjects}
    found = []
    for number in callers:
        loads = under_load(calls, (), callers=number, seconds=seconds)
        first = loads[subjects[0].name]
        for subject in subjects:
            load = loads[subject.name]
            ratio = load.median_per_second / first.median_per_second
            found.append(
                UnderLoad(
                    subject=subject, batch=batch, load=load,
                    ratio=None if subject is subjects[0] else ratio,
                )
            )  # fmt: skip
    return found


def macs_ratio(subject: Subject, first: Subject, *, batch: int) -> float | None:
    """Multiply-accumulates relative to those of another subject, where both are known."""
    mine, other = subject.macs_at(batch), first.macs_at(batch)
    return mine / other if mine and other else None


def told(found: Gain | None) -> dict[str, Any]:
    """A gain as plain data."""
    if found is None:
        return {"speedup": None}
    return {
        "speedup": found.ratio, "speedup_low": found.low, "speedup_high": found.high,
        "verdict": found.verdict,
    }  # fmt: skip


def check_alike(subjects: Sequence[Subject]) -> None:
    """Nothing, if subjects take the same inputs.

    Raises:
        UsageError: They do not, so nothing could be told from their times.
    """
    first = subjects[0]
    for subject in subjects:
        if (subject.unit, subject.takes) != (first.unit, first.takes):
            raise UsageError(
                f"{first.folder} and {subject.folder} take different inputs",
                found=f"{first.unit} {first.takes}; {subject.unit} {subject.takes}"[:300],
                fix="bundles of one model, or leave --compare out",
            )


def _silent(subject: Subject, batch: int) -> Any:
    call = subject.prepare(batch)

    def run() -> tuple[()]:
        call()
        return ()

    return run
