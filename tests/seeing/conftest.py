"""Small bundles whose engines can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prunepass.models.pictures import write_folder
from torch.export import ExportedProgram

import prunepass
from prunepass.sources.preprocess import Preprocessing
from tests.tiny_models import tiny

PREPROCESSING = Preprocessing(height=24, width=30, resize=24, fit="squash", std=(0.25,) * 3)


@pytest.fixture(scope="session")
def program() -> ExportedProgram:
    return prunepass.capture(tiny("class").float().eval(), (torch.randn(2, 3, 24, 30),))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen") / "pictures"
    write_folder(folder, 5, start=0, size=32)
    return folder


@pytest.fixture(scope="session")
def merged(program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that merges, in ONNX."""
    return bundle(program, tmp_path_factory.mktemp("merged"), "weighted-merge", "onnx")


@pytest.fixture(scope="session")
def dropped(program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that drops, eager."""
    return bundle(program, tmp_path_factory.mktemp("dropped"), "cls-attention", "eager")


def bundle(program: ExportedProgram, place: Path, method: str, backend: str) -> Path:
    folder = place / "bundle"
    prunepass.compile(
        program, program.example_inputs[0], method=method, flops=0.71, backend=backend,
        folder=folder, preprocessing=PREPROCESSING.to_dict(), weights="random",
    )  # fmt: skip
    return folder
