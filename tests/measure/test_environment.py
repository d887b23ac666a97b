"""The machine that numbers were taken on, without anything that names it."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import torch

from prunepass.measure.environment import environment


def test_facts() -> None:
    facts = environment(threads=3)
    assert facts["threads"] == 3
    assert environment()["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(str(facts["torch"]))
    assert facts["prunepass"]
    assert json.loads(json.dumps(facts)) == facts


def test_no_paths_and_no_names() -> None:
    values = [str(value) for value in environment().values()]
    text = " ".join(values)
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert str(Path.cwd()) not in text
    assert platform.node() not in values
    assert getpass.getuser() not in values
    assert not any(value.startswith(("/", "~")) for value in values)
