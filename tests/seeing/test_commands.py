"""`prunepass show` and `prunepass report`, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.export import ExportedProgram

import prunepass
from prunepass.__main__ import main
from prunepass.html.page import MOST_BYTES


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_show_draws_and_tells(
    merged: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    file, out = sorted(pictures.iterdir())[0], tmp_path / "tokens.png"
    assert run("show", merged, "--image", file, "-o", out) == 0
    text = capsys.readouterr().out
    assert "block[0].attention" in text
    assert "of 20" in text
    with Image.open(out) as picture:
        assert picture.width > 400
    assert run("show", merged, "--image", file, "-o", out) == 2
    assert "--force" in capsys.readouterr().err
    assert run("show", merged, "--image", file, "-o", out, "--force", "--json", "--quiet") == 0
    found = capsys.readouterr()
    data = json.loads(found.out)
    assert found.err == ""
    assert data["grid"] == [4, 5]
    for stage in data["stages"]:
        assert len(set(stage["owner"])) == stage["after"] - 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("-o", "tokens.gif"), 2, "-o tokens.png"),
        (("-o", "tokens.png", "--prompt", "what"), 2, "reads no prompt"),
        (("-o", "tokens.png", "--image", "nowhere.png"), 1, "there is no picture"),
    ],
)
def test_wrong_words_of_show(
    words: tuple[str, ...], code: int, message: str, merged: Path, pictures: Path,
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("show", merged, "--image", sorted(pictures.iterdir())[0], *words) == code
    assert message in capsys.readouterr().err
    assert not Path("tokens.png").exists()


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("show", tmp_path, "--image", "x.png", "-o", "t.png"), ("report", tmp_path)):
        assert run(*words) == 1
        assert "is not a bundle" in capsys.readouterr().err


def test_a_report_tells_what_it_is_given(
    dropped: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    bench = tmp_path / "bench.json"
    bench.write_text(
        '{"batches": [{"batch": 8, "dense_ms": 9, "compressed_ms": 6, "speedup": 1.5}]}'
    )
    doctor = tmp_path / "doctor.json"
    doctor.write_text('{"findings": []}')
    words = ("--images", pictures, "--limit", 3, "--runs", 3, "--bench", bench, "--doctor", doctor)
    assert run("report", dropped, *words, "-o", out, "--json") == 0
    told = capsys.readouterr()
    data = json.loads(told.out)
    text = out.read_text(encoding="utf-8")
    assert data["bytes"] == len(text.encode()) < MOST_BYTES
    for section in ("tokens", "latency", "quality", "pictures", "doctor", "plan", "versions"):
        assert f'<h2 id="{section}">' in text
    # The model was given in Python, so nobody can load it again by its name.
    assert "No baselines" in text
    assert text.count("<img") == 3 * 3
    assert "quality on 3 pictures" in told.err


def test_a_bundle_that_cannot_look_still_has_a_report(
    program: ExportedProgram, pictures: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "bundle", tmp_path / "report.html"
    prunepass.compile(
        program, program.example_inputs[0], method="cls-attention", flops=0.71, backend="eager",
        folder=folder,
    )  # fmt: skip
    assert run("report", folder, "--images", pictures, "-o", out, "--quiet") == 0
    text = out.read_text(encoding="utf-8")
    assert "The bundle does not say how pictures are prepared" in text
    assert "No pictures:" in text
    assert "<img" not in text


def test_a_report_of_a_bundle_alone(merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert run("report", merged, "-o", out, "--quiet") == 0
    text = out.read_text(encoding="utf-8")
    assert "not timed" in text
    assert "<img" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [(("-o", "report.pdf"), "a report is HTML"), (("--limit", 0), "--limit 0"),
     (("--runs", 2), "three runs"), (("--bench", "nowhere.json"), "cannot read nowhere.json")],
)  # fmt: skip
def test_wrong_words_of_report(
    words: tuple[object, ...], message: str, merged: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("report", merged, *words) in (1, 2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
