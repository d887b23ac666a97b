"""Engines of plans, built and timed beside the dense one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from prunepass.analyse.sites import fingerprint
from prunepass.apply import apply_plan
from prunepass.backends.protocol import Backend, Engine
from prunepass.measure.timing import interleaved, speedup
from prunepass.plans import Plan, Step
from prunepass.specialise import specialise

RUNS = 30


@dataclass(frozen=True)
class Timed:
    """A plan's engine beside the dense one.

    Attributes:
        dense_ms: Median of the dense engine.
        milliseconds: Median of the plan's.
        ratio: Median of the paired ratios, plan over dense: steadier than the times.
    """

    dense_ms: float
    milliseconds: float
    ratio: float


Timer = Callable[[Sequence[Step]], Timed]
"""Given steps, none for the dense model, what their engine takes."""


class EngineTimer:
    """Builds the engine of steps and times it in turns with the dense one, which is built once.

    Args:
        program: Dense.
        backend: What builds the engines.
        batch: Fixes the batch size; None leaves it free, as a bundle does, and times one example.
        runs: Measured runs of each.
    """

    def __init__(
        self,
        program: ExportedProgram,
        backend: Backend,
        *,
        batch: int | None = None,
        runs: int = RUNS,
    ) -> None:
        self._program, self._backend, self._batch, self._runs = program, backend, batch, runs
        self._folder = tempfile.TemporaryDirectory()
        self._dense: Engine | None = None

    def __call__(self, steps: Sequence[Step]) -> Timed:
        """What the engine of steps takes.

        Raises:
            BackendError: The backend fails.
        """
        if self._dense is None:
            self._dense = self._built(self._program, Path(self._folder.name))
        engines = {"dense": self._dense}
        with tempfile.TemporaryDirectory() as folder:
            if steps:
                plan = Plan(
                    method="timed", steps=tuple(steps), fingerprint=fingerprint(self._program)
                )
                engines["plan"] = self._built(apply_plan(self._program, plan), Path(folder))
            timings = interleaved(engines, self._inputs(), runs=self._runs)
        dense = timings["dense"]
        if not steps:
            return Timed(dense.median_ms, dense.median_ms, 1.0)
        ratio = 1 / speedup(dense, timings["plan"])
        return Timed(dense.median_ms, timings["plan"].median_ms, ratio)

    def _built(self, program: ExportedProgram, folder: Path) -> Engine:
        final = program if self._batch is None else specialise(program, batch=self._batch)
        return self._backend.build(final, folder)

    def _inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        args, _ = self._program.example_inputs
        shapes = [((self._batch or 1), *x.shape[1:]) for x in args]
        return tuple(
            torch.randn(shape, generator=generator).to(x.dtype)
            for shape, x in zip(shapes, args, strict=True)
        )
