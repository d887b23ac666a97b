"""Files from elsewhere: what leads out of a folder or would unpickle is refused, in three lines."""

from __future__ import annotations

import io
import json
import pickle
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx import ModelProto

from prunepass.backends.aot_inductor import AotInductorBackend
from prunepass.backends.archives import check_archive, check_external, check_program, leads_out
from prunepass.backends.eager import EagerBackend
from prunepass.errors import BackendError
from tests.conftest import Captured

RAN: list[str] = []


class Code:
    """What runs where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return RAN.append, ("code of a stranger",)


@pytest.fixture(scope="module")
def program(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    EagerBackend().build(captured("class", torch.float32), folder)
    return folder / "model.pt2"


def changed(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """An archive with the contents of another, each of them changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target / "model.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def added(source: Path, target: Path, name: str, content: bytes, mode: int = 0) -> Path:
    changed(source, target, lambda _, old: old)
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with warnings.catch_warnings(), zipfile.ZipFile(target / "model.pt2", "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(entry, content)
    return target


def refused(folder: Path, found: str) -> None:
    with pytest.raises(BackendError, match="is refused") as caught:
        EagerBackend().load(folder)
    assert caught.value.found is not None
    assert found in caught.value.found
    assert len(str(caught.value).splitlines()) == 3
    assert RAN == []


def test_a_program_of_ours_is_read(program: Path, tmp_path: Path) -> None:
    check_program(program)
    EagerBackend().load(changed(program, tmp_path, lambda _, old: old))


@pytest.mark.parametrize("name", ["../out", "model/../../out", "/etc/out", "C:\\out", "a\\..\\out"])
def test_names_that_lead_elsewhere(program: Path, tmp_path: Path, name: str) -> None:
    refused(added(program, tmp_path, name, b"x"), "leads elsewhere")
    with pytest.raises(BackendError, match="is refused"):
        AotInductorBackend().load(tmp_path)


def test_links_and_names_twice(program: Path, tmp_path: Path) -> None:
    refused(added(program, tmp_path, "link", b"/etc", stat.S_IFLNK), "leads elsewhere")
    with zipfile.ZipFile(program) as archive:
        twice = archive.namelist()[0]
    refused(added(program, tmp_path, twice, b"x"), "two files of one name")


def test_example_inputs_that_are_code(program: Path, tmp_path: Path) -> None:
    def code(name: str, old: bytes) -> bytes:
        if "sample_inputs" not in name:
            return old
        content = io.BytesIO()
        torch.save(((Code(),), {}), content)
        return content.getvalue()

    refused(changed(program, tmp_path, code), "something else than tensors")


def test_weights_that_are_pickled(program: Path, tmp_path: Path) -> None:
    def pickled(name: str, old: bytes) -> bytes:
        if not name.endswith("_weights_config.json"):
            return old
        data = json.loads(old)
        next(iter(data["config"].values()))["use_pickle"] = True
        return json.dumps(data).encode()

    refused(changed(program, tmp_path, pickled), "pickled weights")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model/data/constants/custom_obj_0", "a pickled object"),
        ("model/data/constants/opaque_obj_0", "a pickled object"),
        ("model/data/weights/model.pt", "older format"),
    ],
)
def test_objects_and_older_formats(program: Path, tmp_path: Path, name: str, found: str) -> None:
    refused(added(program, tmp_path, name, pickle.dumps(Code())), found)


def test_truncated_and_missing(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    for length in (None, 0, 100, -50):
        if length is not None:
            path.write_bytes(program.read_bytes()[:length])
        for backend in (EagerBackend(), AotInductorBackend()):
            with pytest.raises(BackendError, match="cannot load") as caught:
                backend.load(tmp_path)
            assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(BackendError, match="cannot load"):
        check_archive(tmp_path)


@pytest.mark.parametrize("name", ["../w", "a/../../w", "/w", "C:\\w", "..", ""])
def test_weights_outside_of_a_folder(name: str) -> None:
    assert leads_out(name)
    model = ModelProto()
    entry = model.graph.initializer.add().external_data.add()
    entry.key, entry.value = "location", name
    with pytest.raises(BackendError, match="is refused"):
        check_external(model, "model.onnx")
    entry.value = "weights/model.onnx.data"
    check_external(model, "model.onnx")
