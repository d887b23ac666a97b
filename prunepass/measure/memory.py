"""Memory of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Most memory that this process ever held.

    Read where the system keeps it for this process alone: a process starts with the figure of
    `getrusage` of the one that started it.
    """
    return _status("VmHWM") or _most()


def resident_bytes() -> int:
    """Memory that this process holds now; the most it held where the system does not tell."""
    return _status("VmRSS") or _most()


def _status(field: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0


def _most() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
