"""The command line, mostly in-process; a subprocess where the process itself is what is tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prunepass.models.pictures import write_folder

from prunepass.__main__ import main
from prunepass.bundle_files import write_digests
from prunepass.planners.image_methods import IMAGE_METHODS
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE, METHODS
from prunepass.rules.table import RULES

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "inspect", "methods", "layers", "plan", "compile", "bench", "profile", "eval", "verify",
    "export", "doctor", "show", "report",
)  # fmt: skip
SOURCE = """
from tests.tiny_models import tiny


def _with_pictures(name):
    model = tiny(name).float()
    model.default_cfg = {
        "input_size": (3, 24, 30), "crop_pct": 1.0, "crop_mode": "squash", "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    return model


def with_class():
    return _with_pictures("class")


def with_mean():
    return _with_pictures("mean")


def with_windows():
    return _with_pictures("windows")


def broken():
    raise RuntimeError("out of tea")
"""


class Place:
    """A folder with a model file, pictures, a plan and the bundle compiled from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "own.py").write_text(SOURCE)
        self.model = f"{folder / 'own.py'}:with_class"
        self.other = f"{folder / 'own.py'}:with_mean"
        self.pictures = folder / "pictures"
        write_folder(self.pictures, 9, start=0, size=32)
        self.plan = folder / "plan.json"
        self.bundle = folder / "bundle"


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("cli"))
    assert run("plan", place.model, "--flops", 0.71, "-o", place.plan, "--quiet") == 0
    words = ("--backend", "eager", "--quiet")
    assert run("compile", place.model, "--plan", place.plan, *words, "-o", place.bundle) == 0
    return place


def one_object(text: str) -> dict[str, Any]:
    """The one JSON object, on one line, that standard output consists of."""
    assert text.count("\n") == 1
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(data, dict)
    return data


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """What stands on standard error, three lines or less, nothing on standard output."""
    capsys.readouterr()
    assert run(*words) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("prunepass: "))
    lines = lines[start:]
    assert 2 <= len(lines) <= 3, captured.err
    assert lines[1].startswith("  found: ")
    assert all(line.startswith("  try:   ") for line in lines[2:])
    # torch.export.load logs a trace of its own where a file cannot be loaded.
    assert code == 3 or "Traceback" not in captured.err
    return "\n".join(lines)


def test_without_a_command_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert all(command in capsys.readouterr().out for command in ("usage",))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0
    assert f"usage: prunepass {command}" in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys; from prunepass.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "heavy = {'onnx', 'onnxruntime', 'onnxscript', 'timm', 'transformers', 'torchvision', "
        "'rich', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("inspect",),
        ("compile", "timm/x"),
        ("compile", "timm/x", "-o", "d", "--action", "burn"),
        ("compile", "timm/x", "-o", "d", "--at", "1,two"),
        ("compile", "timm/x", "-o", "d", "--mean", "1,2"),
        ("bench", "d", "--runs", "many"),
        ("eval", "d"),
    ],
)
def test_malformed_command_lines(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*METHODS, DOWNSAMPLE])
    assert all(name in text for name in IMAGE_METHODS)
    assert text.count("(default)") == 3  # of pictures, of pictures and text, of text alone
    assert run("methods", "--json") == 0
    data = one_object(capsys.readouterr().out)
    assert [m["name"] for m in data["methods"]] == list(METHODS)
    assert [m["name"] for m in data["image_methods"]] == list(IMAGE_METHODS)
    assert {r["name"] for r in data["rules"]} == set(RULES)


def test_inspect(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", place.model) == 0
    assert "1 prefix tokens" in capsys.readouterr().out
    assert run("inspect", place.model, "--json") == 0
    captured = capsys.readouterr()
    data = one_object(captured.out)
    assert data["prefix_tokens"] == 1
    assert data["macs"] > 0
    assert data["fingerprint"] == json.loads(place.plan.read_text())["fingerprint"]
    assert data["sites"][0]["label"] == "block[0].attention"
    assert "GMAC" in captured.err
    assert data["counts"]["macs"] == data["macs"]
    assert data["counts"]["flops"] == 2 * data["macs"]
    assert run("inspect", place.model, "--plan", place.plan) == 0
    told = capsys.readouterr().out
    assert "in theory" in told
    assert "0.707 of the dense model" in told


def test_inspect_says_why_tokens_cannot_go(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"{place.folder / 'own.py'}:with_windows"
    assert run("inspect", model) == 0
    assert "no: " in capsys.readouterr().out
    text = refused(capsys, 1, "plan", model, "--flops", 0.71, "-o", place.folder / "w.json")
    assert "view" in text or "reshape" in text
    assert not (place.folder / "w.json").exists()


def test_a_plan_compiled_again_is_the_same_bundle(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    target = place.folder / "direct"
    words = ("--flops", 0.71, "--backend", "eager", "--json")
    assert run("compile", place.model, *words, "-o", target) == 0
    captured = capsys.readouterr()
    data = one_object(captured.out)
    assert data["method"] == DEFAULT
    assert data["macs_ratio"] == pytest.approx(0.71, rel=0.01, abs=0.0)
    assert "build compressed" in captured.err
    for name in ("plan.json", "bundle.json"):
        assert (target / name).read_text() == (place.bundle / name).read_text()
    assert (place.bundle / "plan.json").read_text() == place.plan.read_text()
    first, second = (json.loads((f / "report.json").read_text()) for f in (target, place.bundle))
    assert {k: v for k, v in first.items() if k != "seconds"} == {
        k: v for k, v in second.items() if k != "seconds"
    }


def test_bench(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batch", 1, 3, "--runs", 3)
    assert run("bench", place.bundle, *words, "--json") == 0
    captured = capsys.readouterr()
    data = one_object(captured.out)
    assert {"macs_dense", "macs", "macs_ratio", "batches", "environment"} <= set(data)
    assert data["macs_ratio"] == data["macs"] / data["macs_dense"]
    assert [row["batch"] for row in data["batches"]] == [1, 3]
    for row in data["batches"]:
        assert {"dense_ms", "compressed_ms", "speedup", "realised"} <= set(row)
        assert row["dense_ms"] > 0
        assert row["realised"] == pytest.approx(
            row["speedup"] * data["macs_ratio"], rel=1e-12, abs=0.0
        )
    assert "speed-up" in captured.err
    assert run("bench", place.bundle, *words) == 0
    assert "realised" in capsys.readouterr().out


def test_eval(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", place.bundle, "--images", place.pictures, "--json") == 0
    data = one_object(capsys.readouterr().out)
    assert {
        "count", "top1_dense", "top1", "top5_dense", "top5", "agreement", "kl",
    } <= set(data)  # fmt: skip
    assert data["count"] == 9
    assert data["kl"] > 0
    assert all(0 <= data[key] <= 1 for key in ("top1", "top1_dense", "top5", "agreement"))
    words = ("--limit", 4, "--mean", "0.1,0.2,0.3", "--std", 0.5, "--crop", 0.9)
    assert run("eval", place.bundle, "--images", place.pictures, *words) == 0
    assert "4 pictures" in capsys.readouterr().out


def test_a_bundle_needs_no_model_library(place: Place) -> None:
    code = (
        "import sys\n"
        "for name in ('timm', 'transformers', 'torchvision', 'onnx'): sys.modules[name] = None\n"
        "from prunepass.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["eval", str(place.bundle), "--images", str(place.pictures), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, cwd=place.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert one_object(done.stdout)["count"] == 9


def test_exit_codes_of_the_process(place: Place) -> None:
    words = ["bench", str(place.folder / "none"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "prunepass", *words],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].endswith("is not a bundle")
    assert len(done.stderr.splitlines()) == 3


def test_a_search_on_pictures(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.folder / "searched.json"
    words = ("--method", "tome", "--flops", 0.71, "--minutes", 1e-9, "--images", place.pictures)
    assert run("plan", place.model, *words, "-o", path) == 0
    assert "pictures the search did not see" in capsys.readouterr().out
    notes = json.loads(path.read_text())["notes"]
    assert notes["search"] == "1 schedules on 4 pictures"
    assert notes["macs_ratio"] == pytest.approx(0.71, rel=0.01, abs=0.0)


def test_what_is_unknown_lists_what_is_known(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("-o", place.folder / "none")
    text = refused(capsys, 2, "compile", place.model, "--method", "tomme", "--flops", 0.71, *out)
    assert "one of tome, " in text
    text = refused(capsys, 1, "compile", f"{place.model}x", "--flops", 0.71, *out)
    assert "one of with_class" in text
    text = refused(capsys, 2, "compile", "resnet", "--flops", 0.71, *out)
    assert "timm/NAME" in text
    words = (place.model, "--flops", 0.71, "--backend", "onxx")
    assert "one of onnx, " in refused(capsys, 2, "compile", *words, *out)
    text = refused(capsys, 1, "plan", place.model, "--flops", 0.71, "--at", "0,7", *out)
    assert "block 7" in text
    assert not (place.folder / "none").exists()


@pytest.mark.parametrize("flops", ["0", "-0.3", "1.01", "nan", "inf"])
def test_budgets_out_of_range(place: Place, capsys: pytest.CaptureFixture[str], flops: str) -> None:
    words = (place.model, f"--flops={flops}", "-o", place.folder / "none")
    assert "(0, 1]" in refused(capsys, 1, "compile", *words)
    assert "(0, 1]" in refused(capsys, 1, "plan", *words)


def test_budgets_out_of_reach_and_missing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("-o", place.folder / "none")
    text = refused(capsys, 1, "plan", place.model, "--method", "tome", "--flops", 0.05, *out)
    assert "cannot reach 0.050" in text
    assert "needs a budget" in refused(capsys, 2, "plan", place.model, "--method", "tome", *out)
    words = ("--method", DOWNSAMPLE)
    assert "needs a budget" in refused(capsys, 2, "compile", place.model, *words, *out)
    assert "no plan" in refused(capsys, 2, "plan", place.model, *words, "--flops", 0.5, *out)


def test_options_that_do_not_go_together(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("-o", place.folder / "none")
    for words in (("--method", "tome"), ("--flops", 0.71), ("--images", "x"), ("--at", 0),
                  ("--action", "drop")):  # fmt: skip
        text = refused(capsys, 2, "compile", place.model, "--plan", place.plan, *words, *out)
        assert f"--plan together with {words[0]}" in text
    text = refused(
        capsys, 2, "compile", place.model, "--method", DOWNSAMPLE, "--flops", 0.5, "--at", 0, *out
    )
    assert "together with --at" in text
    for words in (("--runs", 2), ("--batch", 0), ("--threads", 0)):
        refused(capsys, 2, "bench", place.bundle, *words)
    refused(capsys, 2, "compile", place.model, "--flops", 0.71, "--batch", "some", *out)
    refused(capsys, 2, "eval", place.bundle, "--images", place.pictures, "--limit", 0)
    refused(capsys, 2, "eval", place.bundle, "--images", place.pictures, "--crop", 2)


def test_plans_that_are_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--backend", "eager", "-o", place.folder / "none")
    text = refused(capsys, 1, "compile", place.other, "--plan", place.plan, *out)
    assert "made for another model" in text
    data = json.loads(place.plan.read_text())
    path = place.folder / "tampered.json"
    for change in (
        {"schema": 2},
        {"extra": 1},
        {"steps": "none"},
        {"steps": [data["steps"][0] | {"keep": 0}]},
        {"steps": [data["steps"][0] | {"run": "rm"}]},
        {"notes": {"x": {"y": 1}}},
    ):
        path.write_text(json.dumps(data | change))
        refused(capsys, 1, "compile", place.model, "--plan", path, *out)
    for change in ({"rule": "unread2"}, {"site": "block[9].output"}):
        path.write_text(json.dumps(data | {"steps": [data["steps"][0] | change]}))
        text = refused(capsys, 1, "compile", place.model, "--plan", path, *out)
        assert "try:" in text
    path.write_text("{")
    refused(capsys, 1, "compile", place.model, "--plan", path, *out)
    text = refused(capsys, 1, "compile", place.model, "--plan", place.folder / "no.json", *out)
    assert "cannot read the plan" in text
    path.write_text(json.dumps(data | {"method": DOWNSAMPLE, "steps": []}))
    assert DOWNSAMPLE in refused(capsys, 2, "compile", place.model, "--plan", path, *out)
    assert not (place.folder / "none").exists()


def test_what_exists_is_not_overwritten(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place.bundle / "report.json").read_text()
    words = ("compile", place.model, "--plan", place.plan, "--backend", "eager")
    assert "--force" in refused(capsys, 2, *words, "-o", place.bundle)
    assert "not a bundle" in refused(capsys, 2, *words, "--force", "-o", place.pictures)
    text = refused(capsys, 2, "plan", place.model, "--flops", 0.71, "-o", place.plan)
    assert "--force replaces it" in text
    # With --force a failure leaves the old one too.
    broken = f"{place.folder / 'own.py'}:broken"
    text = refused(capsys, 1, "compile", broken, "--flops", 0.71, "--force", "-o", place.bundle)
    assert "out of tea" in text
    assert (place.bundle / "report.json").read_text() == before


def test_pictures_that_cannot_be_used(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    for folder in (empty, damaged):
        folder.mkdir()
    (damaged / "0_x.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for folder in (empty, damaged, tmp_path / "none"):
        refused(capsys, 1, "eval", place.bundle, "--images", folder)
    out = ("-o", tmp_path / "p.json")
    refused(capsys, 1, "plan", place.model, "--flops", 0.71, "--images", empty, *out)
    assert not (tmp_path / "p.json").exists()


def test_bundles_that_are_damaged(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 1, "bench", tmp_path)
    data = json.loads((place.bundle / "bundle.json").read_text())
    manifest = tmp_path / "bundle.json"
    manifest.write_text(json.dumps(data))
    refused(capsys, 1, "bench", tmp_path)  # no digests in it
    write_digests(tmp_path)
    refused(capsys, 3, "bench", tmp_path)  # no engine in it
    manifest.write_text(json.dumps(data | {"macs_dense": "many"}))
    refused(capsys, 1, "bench", tmp_path)
    manifest.write_text(json.dumps(data | {"preprocessing": None}))
    for part in ("dense", "compressed"):
        shutil.copytree(place.bundle / part, tmp_path / part)
    write_digests(tmp_path)
    text = refused(capsys, 2, "eval", tmp_path, "--images", place.pictures)
    assert "how pictures are prepared" in text
    manifest.write_text(json.dumps(data | {"preprocessing": {"height": 3}}))
    write_digests(tmp_path)
    refused(capsys, 1, "eval", tmp_path, "--images", place.pictures)
