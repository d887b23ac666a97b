"""Commands for bundles of pictures say so of others, in three lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunepass.__main__ import main


@pytest.mark.parametrize("kind", ["language", "vision-language"])
@pytest.mark.parametrize("command", ["verify", "export"])
def test_bundles_of_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"kind": kind}))
    words = [command, str(tmp_path)]
    if command == "export":
        words += ["--triton-repository", str(tmp_path / "models")]
    assert main(words) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[0] == f"prunepass: {command} is for bundles of models of pictures alone"
    assert told[1].endswith(f"a bundle of a {kind} model")
    assert len(told) == 3
    assert not (tmp_path / "models").exists()
