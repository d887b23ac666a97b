"""What an engine takes in a process of its own: memory, loading, the first run, energy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunepass.errors import BackendError

_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a process with one engine took.

    Attributes:
        peak_mb: Most memory it held, million bytes.
        libraries_mb: What of that it held before it loaded the engine.
        load_s: Seconds to load the engine.
        first_ms: Milliseconds of the first run.
        joules: Energy an example, the whole machine's; None where it does not tell.
    """

    peak_mb: float
    libraries_mb: float
    load_s: float
    first_ms: float
    joules: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def footprint(folder: Path, part: str, *, batch: int, threads: int | None = None) -> Footprint:
    """What a fresh process takes that loads one engine and runs it a few times.

    Args:
        folder: A bundle.
        part: `dense` or `compressed`.
        batch: Examples of a run.
        threads: Threads of the engine.

    Raises:
        BackendError: The process failed, for want of memory perhaps.
    """
    words = [str(folder), part, str(batch), str(threads or 0)]
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise BackendError(
            f"a fresh process could not run {part} of {folder}",
            found=f"exit code {done.returncode}: {last[:200]}",
            fix="a smaller batch, or a machine with more memory",
        )
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: Path, part: str, batch: int, threads: int | None) -> Footprint:
    from prunepass.benchmark.subjects import subjects
    from prunepass.measure.energy import energy_meter
    from prunepass.measure.memory import peak_bytes, resident_bytes

    libraries = resident_bytes()
    start = time.perf_counter()
    (subject,) = subjects(folder, threads=threads, parts=(part,))
    loaded = time.perf_counter()
    call = subject.prepare(batch)
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    meter = energy_meter()
    for _ in range(_RUNS):
        call()
    joules = None if meter is None else meter() / (_RUNS * batch)
    return Footprint(
        peak_mb=peak_bytes() / 1e6, libraries_mb=libraries / 1e6, load_s=loaded - start,
        first_ms=1e3 * first, joules=joules,
    )  # fmt: skip


if __name__ == "__main__":
    place, which, size, limit = sys.argv[1:]
    print(json.dumps(_measure(Path(place), which, int(size), int(limit) or None).to_dict()))
