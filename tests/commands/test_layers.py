"""Layers and the planner on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunepass.__main__ import main
from prunepass.errors import PlanError
from prunepass.importance.scores import LayerScores
from prunepass.layer_plot import bar, heights, rows, svg
from prunepass.planners.layers import lowest, wanted

MODEL = "prunepass/tiny_vit_patch8_96"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image
    from prunepass.models.pictures import batch  # type: ignore[import-not-found, unused-ignore]

    folder: Path = tmp_path_factory.mktemp("pictures")
    images, labels = batch(range(24))
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{int(label)}_{i}.png")
    return folder


def test_scores_as_json_and_a_plot(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "layers.svg"
    words = ["layers", MODEL, "--score", "lim,zd,bi", "--images", str(pictures), "--json",
             "--plot", str(plot)]  # fmt: skip
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["order"]["lim"]) == [f"block[{i}]" for i in range(8)]
    for site, value in told["scores"]["bi"].items():
        assert value == 1 + told["scores"]["lim"][site]
    assert plot.read_text().count("<rect") == 1 + 3 * 8


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", MODEL, "--score", "zd"]) == 0
    said = capsys.readouterr().out
    assert "block[7]" in said
    assert "least important first" in said


def test_layers_dropped_into_a_bundle(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    words = ["compile", MODEL, "--drop-layers", "2", "--score", "bi", "--images", str(pictures),
             "--backend", "eager", "-o", str(folder), "--json"]  # fmt: skip
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "drop-layers"
    assert 0.7 < report["macs_ratio"] < 0.8
    plan = json.loads((folder / "plan.json").read_text())
    assert {step["kind"] for step in plan["steps"]} == {"drop_layers"}
    assert plan["notes"]["score"] == "bi"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--target", "flops<=0.6", "--method", "tome"], 2),
        (["--target", "flops<=0.6", "--drop-layers", "2"], 2),
        (["--target", "flops<=0.6"], 2),
        (["--floor", "kl<=0.1", "--flops", "0.5"], 2),
        (["--target", "flops<=0.6", "--keep", "0.5"], 2),
        (["--target", "flops<=0.6", "--option", "alignment=hold"], 2),
        (["--target", "flops>=0.6", "--images", "{pictures}"], 2),
        (["--floor", "flops<=0.6", "--images", "{pictures}"], 2),
        (["--floor", "kl<=0.1", "--images", "{pictures}", "--texts", "a.txt"], 2),
        (["--target", "flops<=0.6", "--images", "{text}"], 1),
        (["--target", "flops<=0.6", "--images", "{few}"], 1),
        (["--target", "latency<=5ms", "--images", "{pictures}", "--batch", "none"], 2),
        (["--score", "bi"], 2),
        (["--drop-layers", "2", "--score", "bi"], 1),
        (["--drop-layers", "7", "--score", "zd"], 1),
        (["--drop-layers", "two"], 1),
        (["--drop-layers", "block[9]"], 1),
        (["--drop-layers", "block[1]", "--score", "zd"], 2),
        (["--drop-layers", "2", "--score", "zz"], 2),
        (["--drop-layers", "2", "--at", "1,2"], 2),
        (["--drop-layers", "2", "--method", "downsample", "--flops", "0.5"], 2),
        (["--drop-layers", "2", "--texts", "a.txt"], 2),
    ],
)
def test_contradictions_are_three_lines(
    words: list[str], code: int, pictures: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder, text, few = tmp_path / "bundle", tmp_path / "a.txt", tmp_path / "few"
    text.write_text("no picture\n")
    few.mkdir()
    for path in sorted(pictures.iterdir())[:5]:
        (few / path.name).write_bytes(path.read_bytes())
    words = [word.format(pictures=pictures, text=text, few=few) for word in words]
    assert main(["compile", MODEL, *words, "--backend", "eager", "-o", str(folder)]) == code
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 3, said
    assert not folder.exists()


def test_wrong_data_for_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("no picture\n")
    for words in (["--images", str(tmp_path)], ["--texts", str(tmp_path / "a.txt")], []):
        assert main(["layers", MODEL, "--score", "lim", *words]) in (1, 2)
        assert len(capsys.readouterr().err.strip().splitlines()) == 3


def test_which_layers() -> None:
    order = ["block[0]", "block[3]", "block[2]", "block[1]", "block[4]"]
    assert [s.site for s in lowest(order, 2, blocks=5)] == ["block[2]", "block[3]"]
    with pytest.raises(PlanError, match="3 may go"):
        lowest(order, 4, blocks=5)
    assert wanted("3") == 3
    assert wanted("block[1], block[4].mlp") == ("block[1]", "block[4].mlp")


def test_bars_show_importance() -> None:
    values = {"block[0]": 0.1, "block[1]": 0.3, "block[0].mlp": 9.0}
    up = heights({k: v for k, v in values.items() if "." not in k}, high_matters=False)
    assert up == {"block[0]": 1.0, "block[1]": 0.0}
    assert (bar(0.0), bar(1.0)) == ("", "█" * 12)
    scores = LayerScores({"zd": values}, 0)
    assert rows(scores, branches=False) == [["block[0]", "0.1", "█" * 12], ["block[1]", "0.3", ""]]
    assert "block[0].mlp 9" in svg(scores, branches=True, title="a < b")
