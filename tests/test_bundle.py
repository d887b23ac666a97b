"""Bundles: written whole or not at all, and read with suspicion."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunepass
from prunepass.bundle import (
    DIGESTS,
    Manifest,
    check_digests,
    check_free,
    read_manifest,
    read_plan,
    write_digests,
    write_text,
    written,
)
from prunepass.errors import BackendError, ModelError, PlanError, UsageError
from prunepass.plans import Plan
from tests.conftest import Captured
from tests.steps import step

MANIFEST = Manifest(
    backend="onnx",
    batch=None,
    inputs={"images": [[0, 3, 24, 30], "float32"]},
    outputs={"logits": [[0, 11], "float32"]},
    preprocessing={"height": 24},
    model="tiny",
    weights="random",
    macs_dense=1000,
    macs=650,
)


def put(folder: Path, text: str) -> Path:
    """A bundle folder whose manifest is this text."""
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "bundle"
    with written(target) as scratch:
        (scratch / "file").write_text("new")
        assert not target.exists()
        assert scratch.parent == target.parent
    assert names(target) == ["file"]
    assert names(target.parent) == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), BackendError("x")])
@pytest.mark.parametrize("before", [False, True])
def test_nothing_is_left_when_it_fails(tmp_path: Path, error: BaseException, before: bool) -> None:
    target = tmp_path / "bundle"
    if before:
        put(target, "old")

    def fail() -> None:
        with written(target, force=before) as scratch:
            (scratch / "bundle.json").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == (["bundle"] if before else [])
    if before:
        assert (target / "bundle.json").read_text() == "old"


def test_an_operating_system_error_becomes_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write") as caught, written(tmp_path / "a"):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert caught.value.found is not None
    assert "quota" in caught.value.found
    assert names(tmp_path) == []


def test_force_replaces_a_bundle_whole(tmp_path: Path) -> None:
    target = put(tmp_path / "bundle", "old")
    (target / "stale").write_text("x")
    with written(target, force=True) as scratch:
        (scratch / "bundle.json").write_text("new")
        assert (target / "bundle.json").read_text() == "old"
    assert names(target) == ["bundle.json"]
    assert (target / "bundle.json").read_text() == "new"
    assert names(tmp_path) == ["bundle"]


def test_what_is_there_is_refused_without_force(tmp_path: Path) -> None:
    target = put(tmp_path / "bundle", "old")
    with pytest.raises(UsageError, match="exists") as caught, written(target):
        pytest.fail("the block must not run")
    assert caught.value.fix == "--force replaces it"
    check_free(tmp_path / "new", force=False)


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    folder, file = tmp_path / "mine", tmp_path / "file"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    file.write_text("x")
    for target in (folder, file):
        with pytest.raises(UsageError, match="not a bundle"):
            check_free(target, force=True)
    assert (folder / "thesis.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", force=True)


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "bundle"

    def race() -> None:
        with written(target):
            put(target, "somebody else's")

    with pytest.raises(UsageError, match="exists"):
        race()
    assert (target / "bundle.json").read_text() == "somebody else's"
    assert names(tmp_path) == ["bundle"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot write"), written(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def fill(target: Path) -> None:
    with written(target, force=True) as scratch:
        (scratch / "bundle.json").write_text("new")
        (scratch / "weights").write_bytes(bytes(8 << 20))


def fill_as_a_library(target: Path) -> None:
    """Libraries tell of a full disk in words of their own."""
    with written(target, force=True) as scratch:
        try:
            (scratch / "weights").write_bytes(bytes(8 << 20))
        except OSError as error:
            raise RuntimeError("PytorchStreamWriter failed writing file") from error


def test_a_full_disk_leaves_the_old_bundle(small_disk: Path) -> None:
    target = put(small_disk / "bundle", "old")
    for overfill in (fill, fill_as_a_library):
        with pytest.raises(UsageError, match="cannot write") as caught:
            overfill(target)
        assert caught.value.found == "the disk is full"
        assert names(small_disk) == ["bundle"]
    assert (target / "bundle.json").read_text() == "old"


@pytest.mark.parametrize("backend", ["onnx", "eager"])
def test_building_on_a_full_disk_says_so(
    captured: Captured, small_disk: Path, backend: str
) -> None:
    (small_disk / "filler").write_bytes(bytes(3 * 2**20 - 40_000))
    with pytest.raises(UsageError, match="cannot write") as caught:
        prunepass.build(
            captured("class", torch.float32), backend=backend, folder=small_disk / "engine"
        )
    assert caught.value.found == "the disk is full"


def test_a_kill_midway_leaves_the_old_bundle(tmp_path: Path) -> None:
    target = put(tmp_path / "bundle", "old")
    code = (
        "import sys, time; from pathlib import Path; from prunepass.bundle import written\n"
        "with written(Path(sys.argv[1]), force=True) as scratch:\n"
        "    (scratch / 'bundle.json').write_text('half')\n"
        "    print('ready', flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    assert (target / "bundle.json").read_text() == "old"
    assert names(target) == ["bundle.json"]


def test_write_text_replaces_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "one")
    write_text(path, "zwei \N{SNOWMAN}")
    assert path.read_text(encoding="utf-8") == "zwei \N{SNOWMAN}"
    assert names(tmp_path) == ["plan.json"]
    for wrong in (tmp_path / "none" / "x", path / "x", tmp_path):
        with pytest.raises(UsageError, match="cannot write"):
            write_text(wrong, "x")


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    assert read_manifest(put(tmp_path / "b", MANIFEST.to_json())) == MANIFEST
    assert MANIFEST.macs_ratio == 0.65


def test_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, found in (
        ("none", "no such folder"),
        ("file", "no such folder"),
        (".", "no bundle"),
    ):
        with pytest.raises(ModelError, match="is not a bundle") as caught:
            read_manifest(tmp_path / folder)
        assert caught.value.found is not None
        assert caught.value.found.startswith(found)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '{"schema": 1}'])
def test_damaged_manifests(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"cannot read|damaged"):
        read_manifest(put(tmp_path / "b", text))


def test_a_manifest_that_is_no_text(tmp_path: Path) -> None:
    (put(tmp_path / "b", "") / "bundle.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot read"):
        read_manifest(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("schema", True),
        ("backend", 5),
        ("backend", ""),
        ("batch", 0),
        ("batch", True),
        ("batch", "dynamic"),
        ("inputs", {}),
        ("inputs", []),
        ("inputs", {"x": [[1, -2], "float32"]}),
        ("inputs", {"x": [[1, 2], "load"]}),
        ("inputs", {"x": [[1, 2]]}),
        ("outputs", None),
        ("preprocessing", "crop"),
        ("model", None),
        ("weights", 1),
        ("macs_dense", -1),
        ("macs_dense", 1.5),
        ("macs", None),
    ],
)
def test_wrong_values_in_a_manifest(tmp_path: Path, key: str, value: object) -> None:
    data = json.loads(MANIFEST.to_json()) | {key: value}
    with pytest.raises(ModelError, match=r"damaged|another version") as caught:
        read_manifest(put(tmp_path / "b", json.dumps(data)))
    assert caught.value.fix


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(json.loads(MANIFEST.to_json()))), plain)
def test_any_value_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    data = json.loads(MANIFEST.to_json()) | {key: value}
    try:
        found = read_manifest(put(folder, json.dumps(data)))
    except ModelError as error:
        assert error.found
        return
    assert json.loads(found.to_json()) == data


@settings(max_examples=100, deadline=None)
@given(plain)
def test_any_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    with pytest.raises(ModelError):
        read_manifest(put(folder, json.dumps(value)))


def test_plans_on_disk(tmp_path: Path) -> None:
    made = Plan(method="tome", steps=(step("block[0].attention", "tome", 9),), fingerprint="f")
    path = tmp_path / "plan.json"
    write_text(path, made.to_json())
    assert read_plan(path) == made
    data = json.loads(made.to_json())
    data["steps"][0]["code"] = "import os"
    write_text(path, json.dumps(data))
    with pytest.raises(PlanError, match="wrong keys"):
        read_plan(path)
    path.write_bytes(b"\xff")
    for wrong in (path, tmp_path, tmp_path / "none.json"):
        with pytest.raises(ModelError, match="cannot read the plan"):
            read_plan(wrong)


def whole(folder: Path) -> Path:
    """A bundle of three files."""
    put(folder, MANIFEST.to_json())
    (folder / "dense").mkdir()
    (folder / "dense" / "model.plan").write_bytes(bytes(range(256)) * 9)
    (folder / "plan.json").write_text("{}")
    write_digests(folder)
    check_digests(folder)
    return folder


def test_every_file_of_a_bundle_is_what_was_written(tmp_path: Path) -> None:
    folder = whole(tmp_path / "b")
    plan = folder / "dense" / "model.plan"
    content = plan.read_bytes()
    for wrong in (content[:-1], b"", content[:9] + b"\0" + content[10:]):
        plan.write_bytes(wrong)
        with pytest.raises(ModelError, match="is damaged") as caught:
            check_digests(folder)
        assert caught.value.found == "dense/model.plan is not what was written"
        assert len(str(caught.value).splitlines()) == 3
    plan.write_bytes(content)
    check_digests(folder)
    (folder / ".DS_Store").write_text("left by a file manager")
    check_digests(folder)


def test_files_that_are_missing_or_were_added(tmp_path: Path) -> None:
    folder = whole(tmp_path / "b")
    (folder / "operators.so").write_bytes(b"code")
    with pytest.raises(ModelError, match="is damaged") as caught:
        check_digests(folder)
    assert caught.value.found == "added: operators.so"
    (folder / "operators.so").unlink()
    (folder / "more").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="is damaged"):
        check_digests(folder)
    (folder / "more").unlink()
    (folder / "plan.json").unlink()
    with pytest.raises(ModelError, match="is damaged") as caught:
        check_digests(folder)
    assert caught.value.found == "missing: plan.json"


@pytest.mark.parametrize("text", [None, "", "[]", '{"plan.json": 3}', '{"../x": "0"}'])
def test_digests_that_are_none(tmp_path: Path, text: str | None) -> None:
    folder = whole(tmp_path / "b")
    (folder / DIGESTS).unlink()
    if text is not None:
        (folder / DIGESTS).write_text(text)
    with pytest.raises(ModelError, match=r"damaged|cannot read"):
        check_digests(folder)


def test_a_plan_of_a_newer_schema(tmp_path: Path) -> None:
    made = Plan(method="tome", steps=(step("block[0].attention", "tome", 9),), fingerprint="f")
    data = json.loads(made.to_json())
    data["schema"] += 1
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match="another schema") as caught:
        read_plan(tmp_path / "plan.json")
    assert len(str(caught.value).splitlines()) == 3
