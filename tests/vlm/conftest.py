"""A small LLaVA, its prefill program, and bundles of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from prunepass import vlm
from prunepass.vlm.programs import capture_language
from prunepass.vlm.split import split
from tests.tiny_language import IMAGE_TOKENS, in_memory, small_llava

KEEP = (0.75, 0.5, 0.25)
AFTER = (1, 2, 3)


@pytest.fixture(scope="session")
def llava() -> Any:
    return small_llava().double()


@pytest.fixture(scope="session")
def dense(llava: Any) -> ExportedProgram:
    return capture_language(
        split(llava).language, channels=32, image_tokens=IMAGE_TOKENS, dtype=torch.float64
    )


@pytest.fixture(scope="session", params=["keep_original", "compact"])
def bundle(request: pytest.FixtureRequest, llava: Any) -> vlm.VlmBundle:
    return in_memory(llava, method="transprune", keep=KEEP, after=AFTER, positions=request.param)


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> vlm.VlmBundle:
    model: Any = small_llava()
    folder: Path = tmp_path_factory.mktemp("vlm") / "onnx"
    return vlm.compile(model, method="transprune", keep=KEEP, after=AFTER, folder=folder)
