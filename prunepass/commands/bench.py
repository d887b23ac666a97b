"""`prunepass bench`: how long the engines of bundles take, against each other."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunepass.benchmark.fresh_process import footprint
from prunepass.benchmark.side_by_side import (
    Standing,
    check_alike,
    macs_ratio,
    side_by_side,
    sweep,
)
from prunepass.benchmark.subjects import COMPRESSED, DENSE, Subject, subjects
from prunepass.commands.bench_tables import judged, show_load, show_memory, show_standings
from prunepass.commands.request import Say
from prunepass.commands.words import blocks
from prunepass.errors import UsageError
from prunepass.measure.environment import environment
from prunepass.measure.gain import RUNS
from prunepass.measure.load import CALLERS
from prunepass.measure.results import append_result


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundles", metavar="DIR", type=Path, nargs="+")
    parser.add_argument(
        "--batch", type=blocks, nargs="+", default=[(1, 8)], metavar="N", help="1,8,32 (1,8)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: the library's)")
    parser.add_argument(
        "--runs", type=int, default=RUNS, metavar="N", help=f"runs of each ({RUNS})"
    )
    parser.add_argument(
        "--compare", action="store_true", help="all bundles side by side, in one run"
    )
    parser.add_argument(
        "--load",
        type=blocks,
        nargs="?",
        const=CALLERS,
        metavar="N,N",
        help="callers at once (1,8,32)",
    )
    parser.add_argument(
        "--memory", action="store_true", help="peak memory, each engine in a process of its own"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="appends results to a file there"
    )


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Times the engines of bundles against each other."""
    words.batch = [size for part in words.batch for size in part]
    _check(words)
    found = [_measured(group, words, say=say) for group in _groups(words)]
    if words.runs < RUNS:
        say(f"fewer than {RUNS} runs: intervals and verdicts are not to be trusted")
    told = {"environment": environment(threads=words.threads)}
    if len(found) == 1:
        return found[0] | told
    return {"bundles": found, **told}


def _check(words: Namespace) -> None:
    threads = words.threads is not None and words.threads < 1
    callers = words.load is not None and any(n < 1 for n in words.load)
    if words.runs < 3 or any(b < 1 for b in words.batch) or threads or callers:
        raise UsageError(
            "bench needs at least 3 runs, batches, callers and threads of at least 1",
            found=f"--runs {words.runs} --batch {words.batch} --threads {words.threads}",
            fix="--runs 30 --batch 1,8 --threads 2",
        )
    if len(set(words.bundles)) < len(words.bundles):
        raise UsageError(
            "a bundle is named twice", found=", ".join(map(str, words.bundles)), fix="name it once"
        )


def _groups(words: Namespace) -> list[list[Subject]]:
    """Which engines take turns: those of each bundle, or all of them."""
    if not words.compare or len(words.bundles) == 1:
        return [subjects(folder, threads=words.threads) for folder in words.bundles]
    names = _names(words.bundles)
    found: list[Subject] = []
    for folder in words.bundles:
        parts = (DENSE, COMPRESSED) if not found else (COMPRESSED,)
        for subject in subjects(folder, threads=words.threads, parts=parts):
            name = DENSE if subject.part == DENSE else names[folder]
            found.append(replace(subject, name=name))
    check_alike(found)
    return [found]


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Bundles by the last part of their path, or by all of it where that is not enough."""
    short = [folder.resolve().name for folder in folders]
    clear = len(set(short)) == len(short) and DENSE not in short
    return {f: name if clear else str(f) for f, name in zip(folders, short, strict=True)}


def _measured(group: list[Subject], words: Namespace, *, say: Say) -> dict[str, Any]:
    """What is found of subjects that take turns."""
    first, last = group[0], group[-1]
    result: dict[str, Any] = {"model": first.model, "backend": first.backend}
    line = f"{first.model}, {first.backend}, {first.device}"
    sizes = _batches(group, words.batch, say=say)
    # What does not depend on the batch is told once, what does of the first one; rows have theirs.
    before, now = (one.macs_at(sizes[0]) for one in (first, last))
    if len(group) == 2 and before and now:
        ratio = macs_ratio(last, first, batch=sizes[0])
        result |= {"macs_dense": before, "macs": now, "macs_ratio": ratio}
        line += f": {before / 1e9:.3f} -> {now / 1e9:.3f} GMAC ({ratio:.3f})"
        if any(last.macs_at(size) != now for size in sizes):
            line += f" at batch {sizes[0]}"
    say(line)
    result["subjects"] = [_told(subject, first, batch=sizes[0]) for subject in group]
    standings = [
        standing for size in sizes for standing in side_by_side(group, batch=size, runs=words.runs)
    ]
    show_standings(standings, say=say)
    result["batches"] = _by_batch(standings)
    size = standings[-1].batch
    if words.load is not None:
        loads = sweep(group, batch=standings[0].batch, callers=words.load)
        result["load"] = [load.to_dict() for load in loads]
        show_load(loads, say=say)
        for line in judged(loads):
            say(line)
    if words.memory:
        result["memory"] = _memory(group, size, words)
        show_memory(result["memory"], say=say)
    if words.save is not None:
        path = append_result(words.save, "bench", threads=words.threads, **result)
        say(f"appended to {path}")
    return result


def _batches(group: Sequence[Subject], asked: Sequence[int], *, say: Say) -> Sequence[int]:
    fixed = {subject.batch for subject in group if subject.batch is not None}
    if not fixed:
        return asked
    if len(fixed) > 1:
        raise UsageError(
            "the bundles are fixed to different batches",
            found=", ".join(map(str, sorted(fixed))),
            fix="bundles of one batch, or without a fixed one",
        )
    if list(asked) != list(fixed):
        say(f"the bundle is fixed to batch {min(fixed)}")
    return list(fixed)


def _told(subject: Subject, first: Subject, *, batch: int) -> dict[str, Any]:
    return {
        "name": subject.name, "bundle": subject.folder.resolve().name, "part": subject.part,
        "method": subject.method, "unit": subject.unit, "device": subject.device,
        "macs": subject.macs_at(batch), "macs_ratio": macs_ratio(subject, first, batch=batch),
    }  # fmt: skip


def _by_batch(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """One row a batch; where dense stands against compressed alone, with names for both."""
    found = []
    for size in dict.fromkeys(s.batch for s in standings):
        mine = [s for s in standings if s.batch == size]
        row: dict[str, Any] = {"batch": size, "engines": [s.to_dict() for s in mine]}
        if [s.subject.part for s in mine] == [DENSE, COMPRESSED]:
            for standing in mine:
                part, timing = standing.subject.part, standing.timing
                row |= {f"{part}_ms": timing.median_ms, f"{part}_p99_ms": timing.p99_ms,
                        f"{part}_quartiles_ms": timing.quartiles_ms}  # fmt: skip
            told = mine[1].to_dict()
            row |= {k: told[k] for k in ("speedup", "speedup_low", "speedup_high", "verdict",
                                         "macs_ratio", "realised")}  # fmt: skip
        found.append(row)
    return found


def _memory(group: Sequence[Subject], batch: int, words: Namespace) -> list[dict[str, Any]]:
    return [
        {
            "name": subject.name,
            "batch": batch,
            **footprint(subject.folder, subject.part, batch=batch, threads=words.threads).to_dict(),
        }
        for subject in group
    ]
