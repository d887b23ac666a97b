"""A bundle of any kind that somebody has been at is refused in three lines, and runs nothing."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from prunepass import language, vlm
from prunepass.backends.eager import save_program
from prunepass.bundle import Manifest, read_plan
from prunepass.bundle_files import write_digests
from prunepass.engines import load_engines
from prunepass.errors import BackendError, ModelError, PlanError, PrunepassError
from prunepass.language.manifest import LanguageManifest
from prunepass.vlm.manifest import VlmManifest


@dataclass(frozen=True)
class Kind:
    """How a kind of bundle is written and read.

    Attributes:
        manifest: What it says of itself, for a backend.
        engines: Names of folders.
        load: Loads it.
    """

    manifest: Callable[[str], Any]
    engines: tuple[str, ...]
    load: Callable[[Path], Any]


def pictures(backend: str) -> Manifest:
    told = {"x": [[0, 4], "float32"]}
    return Manifest(
        backend=backend, batch=None, inputs=told, outputs=told, preprocessing=None, model="m",
        weights="random", macs_dense=2, macs=1,
    )  # fmt: skip


def text(backend: str) -> LanguageManifest:
    return LanguageManifest(
        backend=backend, model="m", method="wina", weights="random", layers=2, cache=(2, 4),
        vocabulary=40, context=64, stop=(2,), dtype="float32", macs_dense=2, macs=1,
        macs_above=((1, 2),),
    )  # fmt: skip


def both(backend: str) -> VlmManifest:
    return VlmManifest(
        backend=backend, model="m", method="transprune", positions="compact", rows="text",
        shares=((1, 1), (1, 2)), cache=(2, 4), vocabulary=40, image_token=3, image_tokens=16,
        any_images=True, grid=None, padding=0, stop=(2,), context=64, pixels=(3, 32, 32),
    )  # fmt: skip


KINDS = {
    "pictures": Kind(pictures, ("dense", "compressed"), load_engines),
    "language": Kind(text, ("dense", "compressed"), language.load),
    "vision-language": Kind(both, ("vision", "embedding", "prefill", "decode"), vlm.load),
}
named = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def model(path: Path, *, weights: str | None = None) -> None:
    """An ONNX file of one sum; with `weights`, where its numbers are to lie."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    numbers = helper.make_tensor("w", TensorProto.FLOAT, [4], b"\0" * 16, raw=True)
    if weights is not None:
        numbers.ClearField("raw_data")
        numbers.data_location = TensorProto.EXTERNAL
        numbers.external_data.add(key="location", value=weights)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "sum", values[:1], values[1:], [numbers])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())


def bundle(folder: Path, kind: Kind, backend: str = "onnx") -> Path:
    """A bundle whose engines are the smallest there are."""
    place = folder / "bundle"
    for name in kind.engines:
        (place / name).mkdir(parents=True)
        if backend == "onnx":
            model(place / name / "model.onnx")
        else:
            save_program(torch.export.export(torch.nn.ReLU(), (torch.ones(4),)), place / name)
    (place / "bundle.json").write_text(kind.manifest(backend).to_json())
    write_digests(place)
    return place


def refused(kind: Kind, place: Path, error: type[PrunepassError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        kind.load(place)
    assert len(str(caught.value).splitlines()) == 3


@named
@pytest.mark.parametrize("backend", ["onnx", "eager"])
def test_untouched_it_is_loaded(tmp_path: Path, kind: Kind, backend: str) -> None:
    place = bundle(tmp_path, kind, backend)
    if kind is KINDS["vision-language"]:  # which runs its decoder once, and a sum is none
        refused(kind, place, BackendError, r"wrong number of inputs|does not fit the manifest")
    else:
        kind.load(place)


@named
def test_an_engine_that_was_changed_or_cut(tmp_path: Path, kind: Kind) -> None:
    place = bundle(tmp_path, kind)
    engine = place / kind.engines[-1] / "model.onnx"
    whole = engine.read_bytes()
    for content in (whole[:-20], whole.replace(b"Add", b"Sub"), b""):
        engine.write_bytes(content)
        refused(kind, place, ModelError, "is damaged")
    engine.write_bytes(whole[:-20])
    write_digests(place)  # also by somebody who knows of digests
    refused(kind, place, BackendError, r"refuses model\.onnx")


@named
def test_files_that_were_added_or_are_links(tmp_path: Path, kind: Kind) -> None:
    place = bundle(tmp_path, kind)
    (place / kind.engines[0] / "operators.so").write_bytes(b"code of a stranger")
    refused(kind, place, ModelError, "is damaged")
    (place / kind.engines[0] / "operators.so").unlink()
    (place / "more").symlink_to(tmp_path)
    refused(kind, place, ModelError, "is damaged")


@named
@pytest.mark.parametrize("where", ["../secret", "../../secret", "/etc/hostname"])
def test_weights_outside_of_the_bundle(tmp_path: Path, kind: Kind, where: str) -> None:
    place = bundle(tmp_path, kind)
    for folder in (tmp_path, place):
        (folder / "secret").write_bytes(b"\0" * 16)
    model(place / kind.engines[-1] / "model.onnx", weights=where)
    write_digests(place)
    refused(kind, place, BackendError, r"refuses model\.onnx|outside")


@named
@pytest.mark.parametrize("name", ["../out", "/etc/out", "a\\..\\out"])
def test_an_archive_that_leads_elsewhere(tmp_path: Path, kind: Kind, name: str) -> None:
    place = bundle(tmp_path, kind, "eager")
    engine = place / kind.engines[-1] / "model.pt2"
    with warnings.catch_warnings(), zipfile.ZipFile(engine, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, b"x")
    write_digests(place)
    refused(kind, place, BackendError, "is refused")
    assert not (tmp_path / "out").exists()


@named
def test_what_is_of_a_newer_version(tmp_path: Path, kind: Kind) -> None:
    place = bundle(tmp_path, kind)
    data = json.loads((place / "bundle.json").read_text())
    (place / "bundle.json").write_text(json.dumps({**data, "schema": data["schema"] + 1}))
    write_digests(place)
    refused(kind, place, ModelError, "another version")
    plan = {"schema": 99, "method": "wina", "steps": [], "fingerprint": "", "notes": {}}
    (place / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=r"schema|version") as caught:
        read_plan(place / "plan.json")
    assert len(str(caught.value).splitlines()) == 3


def test_the_file_that_is_tampered_with_is_a_model(tmp_path: Path) -> None:
    model(tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
