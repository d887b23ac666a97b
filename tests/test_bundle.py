"""Manifests and plans of bundles: read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunepass.bundle import Manifest, kind_of, read_manifest, read_plan
from prunepass.bundle_files import write_text
from prunepass.errors import ModelError, PlanError
from prunepass.plans import Plan
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


def test_a_plan_of_a_newer_schema(tmp_path: Path) -> None:
    made = Plan(method="tome", steps=(step("block[0].attention", "tome", 9),), fingerprint="f")
    data = json.loads(made.to_json())
    data["schema"] += 1
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match="another schema") as caught:
        read_plan(tmp_path / "plan.json")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"kind": "language"}', "language"),
        ('{"kind": 3}', None),
        ("{}", None),
        ("[]", None),
        ("{", None),
    ],
)
def test_the_kind_of_a_bundle(tmp_path: Path, text: str, kind: str | None) -> None:
    assert kind_of(put(tmp_path / "b", text)) == kind
    assert kind_of(tmp_path / "none") is None
