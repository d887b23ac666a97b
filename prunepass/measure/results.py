"""Results as JSON lines, one file a machine and stack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prunepass.measure.environment import environment


def append_result(folder: Path, kind: str, *, threads: int | None, **row: Any) -> Path:
    """The file that a result was appended to, named after the machine and its torch.

    Args:
        folder: Where such files lie; made if it is not there.
        kind: What was measured.
        threads: Threads it ran with.
        row: The result, plain values.
    """
    machine = environment(threads=threads)
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine['processor']} torch {machine['torch']}".lower())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.strip('-')}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **row, "environment": machine}) + "\n")
    return path
