"""Latency of plans on this machine: a table of measured costs, and engines timed to check it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.apply import apply_plan
from prunepass.backends.protocol import Backend, Engine
from prunepass.errors import PrunepassError
from prunepass.measure.environment import environment
from prunepass.measure.timing import interleaved, speedup
from prunepass.planners.methods import DEFAULT
from prunepass.plans import Plan, Step
from prunepass.search.recipe import Recipe, Recipes
from prunepass.specialise import specialise

RUNS = 40
Say = Callable[[str], None]


@dataclass(frozen=True)
class LatencyTable:
    """What a run costs, as a sum of parts fitted to measured engines.

    Attributes:
        dense_ms: Median of the dense engine.
        coefficients: Milliseconds of: a run itself; all MACs of the dense model; a reduction of all
            its tokens; a block.
        batch: Examples a run.
        backend: Name of the backend.
        scale: What a check found predictions to be off by.
    """

    dense_ms: float
    coefficients: tuple[float, ...]
    batch: int
    backend: str
    scale: float = 1.0

    def milliseconds(self, recipes: Recipes, steps: Sequence[Step]) -> float:
        """Predicted latency of a batch."""
        if not steps:
            return self.dense_ms
        parts = features(recipes, steps)
        found = sum(c * x for c, x in zip(self.coefficients, parts, strict=True))
        return max(1e-6, found * self.scale)


def features(recipes: Recipes, steps: Sequence[Step]) -> tuple[float, ...]:
    """What latency is made of: 1, share of the MACs, share of tokens that reductions score, share
    of the blocks that stay."""
    left, scored = 1.0, 0.0
    whole = next((s.tokens for s in recipes.sites if s.tokens), 1)
    for step in steps:
        if step.kind != "reduce_tokens" or step.rule == "unread":
            continue
        scored += left
        left = step.count(round(left * whole), recipes.sites.prefix_tokens) / whole
    branches = sum(len(block.branches) for block in recipes.blocks)
    gone = 0
    for step in steps:
        if step.kind == "drop_layers":
            gone += 1 if "." in step.site else 2
    return (1.0, recipes.ratio(steps), scored / max(1, len(recipes.blocks)), 1 - gone / branches)


def latency_table(
    recipes: Recipes,
    backend: Backend,
    *,
    batch: int = 1,
    cache: Path | None = None,
    say: Say | None = None,
) -> LatencyTable:
    """The table of a program, out of the cache or measured: a handful of engines, a minute or so.

    Args:
        recipes: Of the program.
        backend: What builds the engines.
        batch: Examples a run.
        cache: Folder where tables are kept, None for the user's own cache folder.
        say: Told what is going on.

    Raises:
        BackendError: The backend fails.
    """
    path = _place(cache) / f"{_fingerprint(recipes, backend, batch)}.json"
    found = _read(path)
    if found is not None:
        return found
    rows, times = [], []
    dense_ms = 0.0
    for recipe, ratio in _probes(recipes):
        try:
            steps = recipes.steps(recipe, ratio) if (recipe.method or recipe.dropped) else ()
        except PrunepassError:
            continue
        if say is not None:
            say(f"measuring {recipe} at {recipes.ratio(steps):.2f} of the MACs")
        if not steps:
            timing = timed(recipes.program, (), backend, batch=batch)
            dense_ms = timing.dense_ms
            continue
        timing = timed(recipes.program, steps, backend, batch=batch)
        rows.append(features(recipes, steps))
        # The ratio is steadier than the time: both engines took turns.
        times.append(timing.ratio * dense_ms)
    rows.append((1.0, 1.0, 0.0, 1.0))
    times.append(dense_ms)
    table = LatencyTable(dense_ms, _fitted(rows, times), batch, backend.name)
    _write(path, table)
    return table


@dataclass(frozen=True)
class Timed:
    """A plan's engine beside the dense one.

    Attributes:
        dense_ms: Median of the dense engine.
        milliseconds: Median of the plan's.
        ratio: Median of the paired ratios, plan over dense.
    """

    dense_ms: float
    milliseconds: float
    ratio: float


def timed(
    program: ExportedProgram, steps: Sequence[Step], backend: Backend, *, batch: int = 1
) -> Timed:
    """Builds the engine of steps and the dense one, and times them in turns.

    Raises:
        BackendError: The backend fails.
    """
    from prunepass.analyse.sites import fingerprint

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(method="timed", steps=tuple(steps), fingerprint=fingerprint(program))
        engines = {"dense": _built(program, backend, Path(folder) / "dense", batch)}
        if steps:
            smaller = apply_plan(program, plan)
            engines["plan"] = _built(smaller, backend, Path(folder) / "plan", batch)
        timings = interleaved(engines, _inputs(program, batch), runs=RUNS, rest=0.02)
    dense = timings["dense"]
    if not steps:
        return Timed(dense.median_ms, dense.median_ms, 1.0)
    ratio = 1 / speedup(dense, timings["plan"])
    return Timed(dense.median_ms, timings["plan"].median_ms, ratio)


def _built(program: ExportedProgram, backend: Backend, folder: Path, batch: int) -> Engine:
    folder.mkdir()
    return backend.build(program if batch > 1 else specialise(program), folder)


def _inputs(program: ExportedProgram, batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    args, _ = program.example_inputs
    return tuple(torch.randn((batch, *x.shape[1:]), generator=generator).to(x.dtype) for x in args)


def _probes(recipes: Recipes) -> list[tuple[Recipe, float]]:
    """What is measured: dense, less and less of the tokens, a block or two dropped."""
    tokens = [(Recipe(DEFAULT), ratio) for ratio in (0.75, 0.5, 0.35)]
    inner = [site for site in recipes.droppable() if "." not in site]
    middle = tuple(inner[len(inner) // 2 :][:2])
    drops = [(Recipe(None, None, middle), 1.0)] if middle else []
    return [(Recipe(), 1.0), *tokens, *drops]


def _fitted(rows: Sequence[Sequence[float]], times: Sequence[float]) -> tuple[float, ...]:
    """Least squares with no part below zero: parts that come out so are left out in turn."""
    a = torch.tensor(rows, dtype=torch.float64)
    b = torch.tensor(times, dtype=torch.float64)
    open_ = list(range(a.shape[1]))
    while True:
        part = a[:, open_]
        penalty = 1e-6 * torch.eye(len(open_), dtype=torch.float64)
        x = torch.linalg.solve(part.T @ part + penalty, part.T @ b)
        if bool((x >= 0).all()) or len(open_) == 1:
            break
        del open_[int(x.argmin())]
    found = [0.0] * a.shape[1]
    for i, value in zip(open_, x.tolist(), strict=True):
        found[i] = max(0.0, value)
    return tuple(found)


def _place(cache: Path | None) -> Path:
    if cache is not None:
        return cache
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "prunepass" / "latency"


def _fingerprint(recipes: Recipes, backend: Backend, batch: int) -> str:
    machine = environment(threads=getattr(backend, "threads", None))
    text = json.dumps([recipes.sites.fingerprint, recipes.macs, repr(backend), batch, machine])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(path: Path) -> LatencyTable | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return LatencyTable(
            float(data["dense_ms"]), tuple(map(float, data["coefficients"])), int(data["batch"]),
            str(data["backend"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, table: LatencyTable) -> None:
    """Keeps a table; where the cache cannot be written, it is measured again next time."""
    data = {"dense_ms": table.dense_ms, "coefficients": table.coefficients,
            "batch": table.batch, "backend": table.backend}  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(data), encoding="utf-8")
        scratch.replace(path)
    except OSError:
        return
