from __future__ import annotations

import inspect

import pytest

from prunepass import errors
from prunepass.errors import PrunepassError, UnsupportedGraph, first_line, nearest

CODES = {
    "PrunepassError": 1,
    "UsageError": 2,
    "ModelError": 1,
    "CaptureError": 1,
    "PlanError": 1,
    "UnsupportedGraph": 1,
    "BackendError": 3,
    "InternalError": 1,
}
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
TREE = [c for c in CLASSES if c.__module__ == errors.__name__]


def test_the_tree_is_whole() -> None:
    assert {c.__name__: c.exit_code for c in TREE} == CODES
    assert all(issubclass(c, PrunepassError) for c in TREE)
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in CODES)


@pytest.mark.parametrize("kind", TREE)
def test_a_message_says_what_was_found_and_what_to_try(kind: type[PrunepassError]) -> None:
    error = kind("cannot do it", found="a wall", fix="the door")
    assert str(error) == "cannot do it\n  found: a wall\n  try:   the door"
    assert (error.what, error.found, error.fix) == ("cannot do it", "a wall", "the door")


def test_found_and_fix_may_be_left_out() -> None:
    assert str(UnsupportedGraph("no")) == "no"
    assert str(UnsupportedGraph("no", fix="yes")) == "no\n  try:   yes"


def test_nearest_comes_first() -> None:
    known = ["received-attention", "page-rank", "key-norm"]
    assert nearest("page-rnak", known).split(", ")[0] == "page-rank"
    assert sorted(nearest("zzz", known).split(", ")) == sorted(known)
    assert nearest("x", []) == ""
    # What begins like it is meant sooner than what is as short.
    long = ["deit_tiny_patch16_224", "davit_tiny", "nest_tiny"]
    assert nearest("deit_tinny", long).split(", ")[0] == "deit_tiny_patch16_224"


def test_the_first_line_of_an_error_or_its_kind() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError("one two"), most=3) == "one"
    for silent in (AssertionError(), RuntimeError(" \n ")):
        assert first_line(silent) == type(silent).__name__
