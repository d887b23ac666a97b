"""Manifests of vision-language bundles: read back whole, refused when tampered with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from prunepass.bundle import read_manifest
from prunepass.errors import ModelError, UsageError
from prunepass.vlm.manifest import VlmManifest, is_vlm_bundle, read_vlm_manifest
from prunepass.vlm.tiles import Tiling

TILING = {"side": 32, "patches": 4, "grids": [[32, 64]]}

GOOD = VlmManifest(
    backend="onnx", model="m", method="transprune", positions="compact", rows="text",
    shares=((1, 1), (3, 4), (3, 4), (1, 2)), cache=(2, 8), vocabulary=40, image_token=3,
    image_tokens=16, any_images=True, grid=None, padding=0, stop=(2,), context=512,
    pixels=(3, 32, 32), template="{image}{prompt}", image_mark="<image>",
)  # fmt: skip


def write(folder: Path, **changed: Any) -> Path:
    data = json.loads(GOOD.to_json())
    for key, value in changed.items():
        if value is ...:
            del data[key]
        else:
            data[key] = value
    (folder / "bundle.json").write_text(json.dumps(data))
    return folder


def test_it_reads_back_whole(tmp_path: Path) -> None:
    assert read_vlm_manifest(write(tmp_path)) == GOOD
    assert is_vlm_bundle(tmp_path)
    assert GOOD.first_layers == (0, 1, 3)
    assert GOOD.cache_lengths(20, 1) == (20, 16, 16, 12)
    assert GOOD.cache_lengths(40, 2) == (40, 32, 32, 24)
    assert GOOD.left() == (16, 12, 12, 8)


def test_of_pictures_of_any_size_it_reads_back_whole(tmp_path: Path) -> None:
    tiling = Tiling(side=32, patches=4, grids=((32, 64), (64, 32)))
    whole = dataclasses.replace(GOOD, image_tokens=None, tiling=tiling)
    (tmp_path / "bundle.json").write_text(whole.to_json())
    assert read_vlm_manifest(tmp_path) == whole
    assert whole.cache_lengths(60, 1, 50) == (60, 60 - 13, 60 - 13, 60 - 25)
    with pytest.raises(UsageError, match="no one number of tokens"):
        whole.left()


def test_dropped_layers_are_named(tmp_path: Path) -> None:
    assert read_vlm_manifest(write(tmp_path, without=["block[3]"])).without == ("block[3]",)
    for wrong in (..., [3]):
        with pytest.raises(ModelError, match="is damaged"):
            read_vlm_manifest(write(tmp_path, without=wrong))


@pytest.mark.parametrize(
    "changed",
    [
        {"shares": [[1, 1], [1, 2], [3, 4]]}, {"shares": [[1, 2]]}, {"shares": []},
        {"shares": "no"}, {"shares": [[1, 1], [1, 0]]}, {"image_tokens": None}, {"tiling": TILING},
        {"image_tokens": None, "tiling": {**TILING, "side": 0}},
        {"image_tokens": None, "tiling": {**TILING, "grids": [[32, 65]]}},
        {"image_tokens": None, "tiling": {**TILING, "grids": []}},
        {"image_tokens": None, "tiling": {"side": 32}},
        {"positions": "new"}, {"rows": "all"}, {"cache": [2]}, {"cache": [2, 0]},
        {"vocabulary": True}, {"image_tokens": 0}, {"grid": [4]}, {"stop": 2},
        {"pixels": [3, 32]}, {"template": "no mark"}, {"context": ...}, {"extra": 1},
        {"method": ""}, {"any_images": 1},
    ],
)  # fmt: skip
def test_what_was_tampered_with_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="is damaged"):
        read_vlm_manifest(write(tmp_path, **changed))


@pytest.mark.parametrize("schema", [0, 1, 2, 4, True, "3", None])
def test_another_version_is_refused(tmp_path: Path, schema: Any) -> None:
    with pytest.raises(ModelError, match="another version"):
        read_vlm_manifest(write(tmp_path, schema=schema))


def test_what_is_no_such_bundle(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a vision-language bundle"):
        read_vlm_manifest(tmp_path)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read"):
        read_vlm_manifest(tmp_path)
    assert not is_vlm_bundle(tmp_path)
    with pytest.raises(ModelError, match="bundle of another kind"):
        read_vlm_manifest(write(tmp_path, kind="pictures"))
    with pytest.raises(ModelError, match="no bundle of a model of pictures alone"):
        read_manifest(write(tmp_path))
