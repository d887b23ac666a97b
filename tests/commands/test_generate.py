"""What can be asked, and of which bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunepass.__main__ import main
from prunepass.bundle import Manifest


@pytest.mark.parametrize("asked", [("--tokens", "1,2"), ("--prompt", "Hello")])
def test_what_is_no_bundle_is_said_to_be_none(
    asked: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, found in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no bundle.json")):
        assert main(["generate", str(folder), *asked]) == 1
        error = capsys.readouterr().err.strip()
        assert f"{folder} is not a bundle" in error
        assert f"found: {found}" in error
        assert len(error.splitlines()) == 3


@pytest.mark.parametrize("asked", [("--tokens", "1,2"), ("--prompt", "Hello")])
def test_models_of_pictures_answer_nothing(
    asked: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"x": [[0, 4], "float32"]}
    manifest = Manifest(
        backend="eager", batch=None, inputs=told, outputs=told, preprocessing=None, model="m",
        weights="random", macs_dense=2, macs=1,
    )  # fmt: skip
    (tmp_path / "bundle.json").write_text(manifest.to_json())
    assert main(["generate", str(tmp_path), *asked]) == 2
    error = capsys.readouterr().err.strip()
    assert "a model of pictures alone, which answers nothing" in error
    assert len(error.splitlines()) == 3


def test_token_numbers_are_not_for_models_that_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle.json").write_text('{"kind": "vision-language"}')
    assert main(["generate", str(tmp_path), "--tokens", "1,2"]) == 2
    assert "for bundles of language models" in capsys.readouterr().err
