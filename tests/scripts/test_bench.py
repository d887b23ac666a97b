"""The one command that measures again what the README claims."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunepass.analyse.counting import counts
from tests.scripts.loading import SCRIPTS, loaded


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return loaded("bench")


def test_every_part_is_a_script_with_such_options(bench: ModuleType) -> None:
    for part in bench.PARTS.values():
        script, *options = part.command.split()
        text = (SCRIPTS / script).read_text()
        assert all(f'"{o}"' in text for o in options if o.startswith("--")), part.command
        assert ("{data}" in part.command) <= bool(part.needs)


def test_every_kind_of_result_in_a_table_is_measured_by_a_part(bench: ModuleType) -> None:
    asked = set(re.findall(r'r\["kind"\] == "([a-z-]+)"', (SCRIPTS / "table").read_text()))
    scripts = {part.command.split()[0] for part in bench.PARTS.values()}
    measured = set()
    for script in scripts:
        text = (SCRIPTS / script).read_text()
        measured |= set(re.findall(r'"([a-z]+(?:-[a-z]+)?)", (?:None|words\.)', text))
    assert {"speed", "compare", "noise", "vlm-quality"} <= asked
    assert asked <= measured


def test_what_is_lacking_is_told(bench: ModuleType, tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPTS / "bench"), "--data", str(tmp_path)]
    done = subprocess.run([*words, "--list"], capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert set(lines) == set(bench.PARTS)
    assert "needs weights/vit_tiny_patch16_224.safetensors, images" in lines["quality"]
    done = subprocess.run(
        [*words, "--dry-run", "quality", "noise"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "scripts/bench_noise" in done.stdout
    assert "not measured: quality: needs" in done.stdout
    done = subprocess.run([*words, "tea"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no part called tea" in done.stderr


def test_eager_merging_costs_what_it_says() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5
    ).eval()
    merging = loaded("plain_tome.py").PlainTome(model, macs=400_000).eval()
    assert merging.merged > 0
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert merging(x).shape == (2, 5)
        program = torch.export.export(merging, (x[:1],), strict=False)
    tokens, similar = 17, 0
    for _ in range(3):
        similar += (tokens + 1) // 2 * (tokens // 2) * 12  # even against odd, keys of 12
        tokens -= min(merging.merged, (tokens - 1) // 2)
    assert counts(program).total.macs == merging.macs + similar
