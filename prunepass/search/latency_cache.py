"""Tables of latency in the user's cache, each under what it was measured with."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

from prunepass.backends.protocol import Backend
from prunepass.measure.environment import environment
from prunepass.search.latency import PARTS, LatencyTable
from prunepass.search.recipe import Recipes
from prunepass.user_cache import user_cache

_FORMAT = 2


def place_of(
    recipes: Recipes, backend: Backend, batch: int | None, *, folder: Path | None = None
) -> Path:
    """The file of a table: another machine, stack, backend, batch or model has another one.

    Args:
        recipes: Of the program.
        backend: What builds the engines.
        batch: Examples a run, None where it is free.
        folder: Where tables are kept, None for the user's own cache folder.
    """
    if folder is None:
        folder = user_cache() / "latency"
    machine = environment(threads=getattr(backend, "threads", None))
    facts = [_FORMAT, recipes.sites.fingerprint, recipes.macs, repr(backend), batch, machine]
    return folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.json"


def read_table(path: Path) -> LatencyTable | None:
    """The table in a file; None where there is none, or it is damaged."""
    try:
        parts = tuple(float(x) for x in json.loads(path.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = len(parts) == PARTS and all(math.isfinite(x) and x >= 0 for x in parts)
    return LatencyTable(parts) if whole else None


def write_table(path: Path, table: LatencyTable) -> None:
    """Keeps a table; where the cache cannot be written, it is measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps({"parts": table.parts}), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        return
