"""What a long call is doing, and how long each stage of it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Stage = Callable[[str], None]
"""Told the name of a stage as it begins."""


class Clock:
    """Seconds by stage.

    Args:
        on_stage: Told the name of each stage, or None.
    """

    def __init__(self, on_stage: Stage | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_stage = on_stage

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._on_stage is not None:
            self._on_stage(stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)
