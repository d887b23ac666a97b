"""Energy, where the machine tells: counters of Intel and AMD processors and of NVIDIA GPUs."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
Joules = Callable[[], float]


def energy_meter(*, powercap: Path = POWERCAP) -> Joules | None:
    """What tells the joules used since it was made, all processors and GPUs; None if nothing does.

    Args:
        powercap: Where the system keeps its counters.
    """
    counters = [*_processors(powercap), *_gpus()]
    return None if not counters else lambda: sum(counter() for counter in counters)


def _processors(powercap: Path) -> list[Joules]:
    """A counter for each package; those of its parts are in it already."""
    return [
        counter
        for folder in sorted(powercap.glob("intel-rapl:*"))
        if folder.name.count(":") == 1 and (counter := _package(folder)) is not None
    ]


def _package(folder: Path) -> Joules | None:
    try:
        before = int((folder / "energy_uj").read_text())
        around = int((folder / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
        return None  # readable by root only on most machines

    total = 0

    def joules() -> float:
        nonlocal before, total
        now = int((folder / "energy_uj").read_text())
        total += now - before if now >= before else now + around - before
        before = now
        return total / 1e6

    return joules


def _gpus() -> list[Joules]:
    if importlib.util.find_spec("pynvml") is None:
        return []
    import pynvml

    found: list[Joules] = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            found.append(_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)))
    return found


def _gpu(nvml: object, handle: object) -> Joules:
    read = nvml.nvmlDeviceGetTotalEnergyConsumption  # type: ignore[attr-defined]
    before = read(handle)
    return lambda: (read(handle) - before) / 1e3
