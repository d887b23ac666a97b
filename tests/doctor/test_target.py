"""Targets as people write them."""

from __future__ import annotations

import pytest
from packaging.version import Version

from prunepass.doctor.target import TARGETS, default_targets, parse_target
from prunepass.errors import UsageError


def test_names_and_versions() -> None:
    target = parse_target("tensorrt==10.13")
    assert (target.name, target.version, target.kind) == ("tensorrt", Version("10.13"), "onnx")
    assert str(target) == "tensorrt==10.13"
    assert parse_target(" torch-tensorrt==2.13 ").name == "torch_tensorrt"
    assert parse_target("tensorrt==10").version == Version("10.0")
    assert parse_target("onnxruntime").version >= Version("1.19")
    for name in TARGETS:
        assert parse_target(name).version >= Version(TARGETS[name].oldest)


def test_a_version_newer_than_the_rules_is_judged_as_the_newest() -> None:
    target = parse_target("onnxruntime==9.0")
    assert str(target) == "onnxruntime==9.0"
    newest = Version(TARGETS["onnxruntime"].newest)
    assert newest < target.judged < Version(f"{newest.major}.{newest.minor + 1}")
    assert parse_target("onnxruntime==1.31.1").judged == Version("1.31.1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tensort==10", "one of tensorrt"),
        ("tensorrt==", "is no version"),
        ("tensorrt==ten", "is no version"),
        ("tensorrt==7.2", "nothing is known of tensorrt 7.2"),
        ("tensorrt>=8", "there is no target"),
        ("", "there is no target"),
    ],
)
def test_what_is_no_target(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        parse_target(text)
    assert len(str(error.value).splitlines()) == 3


def test_targets_of_a_kind_of_file() -> None:
    assert [target.name for target in default_targets("onnx")] == ["onnxruntime", "tensorrt"]
    assert all(target.kind == "program" for target in default_targets("program"))
