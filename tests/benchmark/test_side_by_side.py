"""Bundles held against each other, in turns, under load, and in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prunepass
from prunepass.__main__ import main
from prunepass.benchmark.fresh_process import footprint
from prunepass.benchmark.side_by_side import check_alike, side_by_side, sweep
from prunepass.benchmark.subjects import subjects
from prunepass.errors import BackendError, UsageError
from tests.conftest import Captured
from tests.tiny_models import images


@pytest.fixture(scope="module")
def folders(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bundles of one tiny model, run eagerly."""
    place = tmp_path_factory.mktemp("bundles")
    found = []
    program = captured("class", torch.float32)
    x = images(2, name="class", dtype=torch.float32)
    for name, keep in (("half", 0.5), ("most", 0.9)):
        prunepass.compile(
            program, (x,), method="random", keep=keep, at=(0,), backend="eager",
            folder=place / name, name=name,
        )  # fmt: skip
        found.append(place / name)
    return found


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_standings(folders: list[Path]) -> None:
    group = subjects(folders[0])
    assert [s.name for s in group] == ["dense", "compressed"]
    assert [s.method for s in group] == ["dense", "random"]
    dense, compressed = side_by_side(group, batch=3, runs=4, rest=0.0)
    assert dense.gain is None
    assert compressed.gain is not None
    assert compressed.gain.low <= compressed.gain.ratio <= compressed.gain.high
    macs = [s.macs_at(3) or 0 for s in group]
    share = macs[1] / macs[0]
    assert [s.macs_ratio for s in (dense, compressed)] == [1.0, share]
    assert compressed.realised == pytest.approx(compressed.gain.ratio * share, rel=1e-12, abs=0)
    assert dense.per_second == pytest.approx(3e3 / dense.timing.median_ms, rel=1e-12, abs=0)


def test_under_load(folders: list[Path]) -> None:
    found = sweep(subjects(folders[0]), batch=2, callers=(1, 3), seconds=0.05)
    assert [(u.load.callers, u.subject.name) for u in found] == [
        (1, "dense"), (1, "compressed"), (3, "dense"), (3, "compressed")
    ]  # fmt: skip
    assert [u.ratio is None for u in found] == [True, False] * 2
    assert all(u.per_second == 2 * u.load.median_per_second > 0 for u in found)


def test_what_takes_other_inputs_is_refused(folders: list[Path]) -> None:
    group = [*subjects(folders[0]), *subjects(folders[1])]
    check_alike(group)
    other = subjects(folders[0])[0]
    longer = [other, type(other)(**{**other.__dict__, "takes": "pictures of 7 x 7"})]
    with pytest.raises(UsageError, match="take different inputs"):
        check_alike(longer)


@pytest.mark.slow
def test_bundles_side_by_side(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--batch", "1,2", "--runs", 4, "--load", "1,2", "--save", tmp_path)
    assert run("bench", *folders, "--compare", *words, "--json") == 0
    caught = capsys.readouterr()
    data = json.loads(caught.out)
    assert [s["name"] for s in data["subjects"]] == ["dense", "half", "most"]
    assert [row["batch"] for row in data["batches"]] == [1, 2]
    for row in data["batches"]:
        first, *others = row["engines"]
        assert first["speedup"] is None
        assert all(o["speedup_low"] <= o["speedup"] <= o["speedup_high"] for o in others)
        assert all(o["p99_ms"] >= o["median_ms"] for o in row["engines"])
    assert {u["callers"] for u in data["load"]} == {1, 2}
    assert "under load" in caught.err
    assert "verdict" in caught.err
    assert "fewer than 30 runs" in caught.err
    (line,) = next(tmp_path.glob("*.jsonl")).read_text().splitlines()
    saved = json.loads(line)
    assert saved["kind"] == "bench"
    assert saved["batches"] == data["batches"]
    assert saved["environment"]["threads"] >= 1


def test_bundles_one_after_the_other(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("bench", *folders, "--batch", 1, "--runs", 3, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [b["model"] for b in data["bundles"]] == ["half", "most"]
    assert all(b["batches"][0]["dense_ms"] > 0 for b in data["bundles"])
    assert run("bench", folders[0], folders[0]) == 2
    assert "named twice" in capsys.readouterr().err
    assert run("bench", folders[0], "--load", "0") == 2


def test_a_process_of_its_own(folders: list[Path]) -> None:
    found = footprint(folders[0], "compressed", batch=2, threads=1)
    assert found.peak_mb > found.libraries_mb > 50
    assert found.load_s > 0
    assert found.first_ms > 0
    assert found.joules is None or found.joules >= 0


@pytest.mark.slow
def test_a_process_for_each_engine(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--batch", 1, "--runs", 3, "--memory", "--threads", 1, "--json")
    assert run("bench", folders[0], *words) == 0
    found = json.loads(capsys.readouterr().out)["memory"]
    assert [f["name"] for f in found] == ["dense", "compressed"]
    assert all(f["peak_mb"] > f["libraries_mb"] > 50 for f in found)
    with pytest.raises(BackendError, match="a fresh process could not run"):
        footprint(tmp_path, "dense", batch=1)
