"""Files of bundles: written whole or not at all, and known again."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunepass
from prunepass.bundle_files import (
    DIGESTS,
    check_digests,
    check_free,
    write_digests,
    write_text,
    written,
)
from prunepass.errors import BackendError, ModelError, UsageError
from tests.conftest import Captured


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
        "import sys, time; from pathlib import Path; from prunepass.bundle_files import written\n"
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


def whole(folder: Path) -> Path:
    """A bundle of three files."""
    put(folder, "{}")
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
