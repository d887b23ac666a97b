"""The way to the first token of vision-language bundles, timed side by side."""

from __future__ import annotations

import json

import pytest

from prunepass import vlm
from prunepass.__main__ import main


@pytest.mark.slow
def test_the_way_to_the_first_token(
    onnx_bundle: vlm.VlmBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(onnx_bundle.folder), "--batch", "1,2", "--runs", "3", "--json"]
    assert main(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert [s["method"] for s in data["subjects"]] == ["transprune"]
    assert [row["batch"] for row in data["batches"]] == [1, 2]
    assert all(row["engines"][0]["prompts_per_second"] > 0 for row in data["batches"])
    assert main(["profile", str(onnx_bundle.folder)]) == 2
    assert "way to the first token" in capsys.readouterr().err
