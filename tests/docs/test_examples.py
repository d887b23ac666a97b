"""What README.md and docs/ show is run as it stands, on smaller models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(name: str) -> list[str]:
    """The Python of a document, in order."""
    return BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """The names that a block leaves behind."""
    exec(compile(code, "document", "exec"), names)
    return names


def smaller(code: str) -> str:
    """The same with timm's own test model in place of one that takes long."""
    assert '"deit_small_patch16_224"' in code
    return code.replace('"deit_small_patch16_224"', '"test_vit"').replace("224", "160")


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md")
    lines = [x for x in code.splitlines() if x.strip() and not x.lstrip().startswith("#")]
    assert len(lines) <= 12
    found = run(smaller(code), {})
    assert found["logits"].shape == (1, 1000)
    assert found["result"].report.macs_ratio == pytest.approx(0.55, abs=0.01)
    assert (tmp_path / "build" / "bundle" / "plan.json").is_file()


def test_a_model_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prunepass.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own, use = blocks("docs/start.md")
    assert own.startswith("# own.py\n")
    (tmp_path / "own.py").write_text(own)
    found = run(use, {})
    assert found["logits"].shape == (2, 10)
    assert main(["inspect", "own.py:build"]) == 0
    assert "1 prefix tokens" in capsys.readouterr().out
    assert main(["report", "build/own-too", "-o", "own.html"]) == 0
    assert (tmp_path / "own.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny_decoders import FAMILIES, decoder

    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/language.md")
    model = decoder(next(iter(FAMILIES)))
    code = code.replace('"Once upon a time"', "[1, 2, 3], max_new_tokens=8")
    run(code.replace("keep=0.5", "keep=0.5, smallest=1"), {"model": model, "tokenizer": None})


@pytest.mark.slow
def test_a_vision_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunepass.models.pictures import write_folder

    from tests.vlm.test_commands import folder as write_model

    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/vision-language.md")

    class Factory:
        def mktemp(self, name: str) -> Path:
            return tmp_path

    write_model.__wrapped__(Factory()).rename(tmp_path / "llava-folder")  # type: ignore[attr-defined]
    (file,) = write_folder(tmp_path / "pictures", 1, start=0, size=32)
    code = code.replace("cat.jpg", str(file)).replace(
        'folder="build', 'after=(1, 2, 3), folder="build'
    )
    run(code.replace("max_new_tokens=64", "max_new_tokens=4"), {})
