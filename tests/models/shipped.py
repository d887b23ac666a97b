"""What holds for the weights and records of every model that is shipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file


def check_weights(path: Path, names: set[str]) -> None:
    """Asserts that weights are stored in float16 (counters aside), finite, and those of a model."""
    stored = load_file(path)
    assert {x.dtype for x in stored.values() if x.is_floating_point()} == {torch.float16}
    assert all(value.isfinite().all() for value in stored.values())
    assert stored.keys() == names


def check_unseen(record: Mapping[str, object], fresh: range) -> None:
    """Asserts that pictures a record was measured on, and fresh ones, were not trained on."""
    held_out, training = record["held_out_indices"], record["training_indices"]
    assert isinstance(held_out, list)
    assert isinstance(training, list)
    seen = range(*training)
    for unseen in (range(*held_out), fresh):
        assert unseen.stop <= seen.start or seen.stop <= unseen.start
