"""Programs of the tiny models, each captured and reduced once a session."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.capturing import capture
from prunepass.passes.reduce_tokens import reduce_tokens
from prunepass.plans import Step
from prunepass.records import PassRecord
from tests.tiny_models import images, tiny

Captured = Callable[..., ExportedProgram]
Reduced = Callable[[str, list[Step]], tuple[ExportedProgram, PassRecord]]


@pytest.fixture(scope="session")
def captured() -> Captured:
    """Name of a tiny model, dtype -> its labelled program, batch dynamic. Do not change it."""

    @cache
    def program(name: str, dtype: torch.dtype = torch.float64) -> ExportedProgram:
        return capture(tiny(name).to(dtype), (images(2, name=name, dtype=dtype),))

    return program


@pytest.fixture(scope="session")
def reduced(captured: Captured) -> Reduced:
    """(name of a tiny model, steps) -> the sealed program and its record. Do not change it."""
    made: dict[str, tuple[ExportedProgram, PassRecord]] = {}

    def program(name: str, steps: list[Step]) -> tuple[ExportedProgram, PassRecord]:
        key = f"{name} {steps}"
        if key not in made:
            made[key] = reduce_tokens(captured(name), steps)
        return made[key]

    return program


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root's rights")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
