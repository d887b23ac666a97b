"""Zeros in weights, over a whole program."""

from __future__ import annotations

import pytest
import torch

from prunepass.calibrate import Batch
from prunepass.errors import PlanError
from prunepass.sparsify_weights import sparsify_weights
from tests.conftest import Captured
from tests.tiny_models import DEPTH, images

DATA = [Batch((images(4, seed=i),)) for i in range(2)]


def test_zeros_are_where_the_scores_say(captured: Captured) -> None:
    program = captured("class")
    before = {name: weight.clone() for name, weight in program.state_dict.items()}
    scores = {"block[0]": 1.0, "block[1]": 0.0, "block[2]": 3.0}
    made, told = sparsify_weights(program, DATA, sparsity=0.5, scores=scores, most=0.7)
    assert all(torch.equal(program.state_dict[n], w) for n, w in before.items())
    shares = [told.by_block[f"block[{i}]"] for i in range(DEPTH)]
    assert shares[1] == pytest.approx(0.7, abs=0.03)  # rounded down in each row
    assert shares[2] < shares[0] < shares[1]
    assert told.zeros / told.weights == pytest.approx(0.5, abs=0.03)
    found = made.state_dict["blocks.1.mlp.fc1.weight"]
    assert int((found == 0).sum()) == 44 * int(28 * 0.7)
    assert "theoretical" in str(told)


def test_no_sparsity_changes_nothing(captured: Captured) -> None:
    made, told = sparsify_weights(captured("class"), DATA, sparsity=0.0, most=0.0)
    assert told.zeros == 0
    x = images(3)
    assert torch.equal(made.module()(x), captured("class").module()(x))


def test_wrong_requests(captured: Captured) -> None:
    with pytest.raises(PlanError, match="calibration data"):
        sparsify_weights(captured("class"), [], sparsity=0.5)
    with pytest.raises(PlanError, match="no score"):
        sparsify_weights(captured("class"), DATA, sparsity=0.5, scores={"block[0]": 1.0})
