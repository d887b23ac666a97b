"""`prunepass doctor` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunepass.__main__ import main
from tests.doctor.graphs import EXAMPLES


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.onnx"
    path.write_bytes(EXAMPLES["trt-top-k"].bad().SerializeToString())
    return path


def test_a_finding_is_told_with_node_reason_and_mend(
    bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(bad), "--target", "tensorrt==10.13"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tensorrt==10.13 fails: TopK#0"
    assert said[1].startswith("  found: k = 4096; k is at most 3840")
    assert said[2].startswith("  try:   select the smaller side")
    assert said[3].endswith("1 x fails")


def test_as_json(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", str(bad), "--json", "--target", "tensorrt==10.13", "--target",
             "onnxruntime==1.31"]  # fmt: skip
    assert main(words) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["targets"] == ["tensorrt==10.13", "onnxruntime==1.31"]
    assert told["blocking"] == 1
    (finding,) = told["findings"]
    assert finding["rule"] == "trt-top-k"
    assert finding["file"] == str(bad)
    assert {"node", "what", "found", "mend", "source", "effect"} <= set(finding)


def test_a_healthy_file_and_the_usual_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "good.onnx"
    path.write_bytes(EXAMPLES["trt-top-k"].good().SerializeToString())
    assert main(["doctor", str(path)]) == 0
    said = capsys.readouterr().out
    assert "nothing to tell" in said
    assert "onnxruntime==" in said
    assert "tensorrt==" in said


def test_wrong_words(tmp_path: Path, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "none.onnx")]) == 1
    assert main(["doctor", str(bad), "--target", "tensort"]) == 2
    assert main(["doctor", str(bad), "--target", "torch_tensorrt"]) == 2
    for message in capsys.readouterr().err.strip().split("prunepass: ")[1:]:
        assert len(message.strip().splitlines()) == 3


def test_a_table_at_a_terminal(
    bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor", str(bad), "--target", "tensorrt==10.13"]) == 1
    said = capsys.readouterr().out
    assert "what to do" in said
    assert "TopK#0" in said
