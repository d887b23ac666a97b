"""Captured programs of the tiny models, each captured once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from torch.export import ExportedProgram

from prunepass.capture import capture
from tests.tiny_models import images, tiny

Captured = Callable[[str], ExportedProgram]


@pytest.fixture(scope="session")
def captured() -> Captured:
    """Name of a tiny model -> its labelled program, float64, batch dynamic. Do not change it."""

    @cache
    def program(name: str) -> ExportedProgram:
        return capture(tiny(name), (images(2, name=name),))

    return program
