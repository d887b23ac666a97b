from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunepass.errors import UnsupportedGraph
from prunepass.planners.block_runs import Layer
from prunepass.planners.sparse_gain import SMALLEST, large_enough, pays, rows_that_gain

LAYERS = [Layer(f"block[0].mlp.{n}", "norm", 1024, 512 << i) for i, n in enumerate(("up", "down"))]


def test_no_layer_that_was_measured_is_sparse_where_it_lost() -> None:
    """Every layer that `bench_sparse --linear` or `bench_gpu` measured, on every machine."""
    files = sorted((Path(__file__).parents[2] / "models" / "results").glob("*.jsonl"))
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    # Several layers in a row, as in decoding; one alone waits for its threads to wake.
    measured = [r for r in rows if r["kind"] == "sparse-linear" and "layers" in r]
    measured += [r for r in rows if r["kind"] == "gpu-linear"]
    chosen = 0
    for row in measured:
        layer = Layer("block[0].mlp.up", "norm", row["inputs"], row["outputs"])
        device = "cuda" if row["kind"] == "gpu-linear" else "cpu"
        if pays(layer, row["keep"], width=getattr(torch, row["dtype"]).itemsize, device=device):
            chosen += 1
            assert row["speedup"] >= 0.97, row
    assert 0 < chosen < len(measured)


def test_the_less_is_read_the_more_layers_gain() -> None:
    layer = Layer("block[0].mlp.up", "norm", 1024, 1024)
    found = [pays(layer, keep, width=4) for keep in (0.25, 0.5, 0.75, 1.0)]
    assert found == [True, True, False, False]
    # Half the bytes: what is saved is halved, and what it costs to find inputs is not.
    assert [pays(layer, keep, width=2) for keep in (0.25, 0.5)] == [True, False]


def test_a_gpu_reads_more_in_the_time_that_finding_inputs_takes() -> None:
    large, small = (Layer("block[0].mlp.up", "norm", 4096, n) for n in (11008, 4096))
    assert pays(large, 0.5, width=2, device="cuda")
    assert pays(small, 0.5, width=2)
    assert not pays(small, 0.5, width=2, device="cuda")


def test_layers_of_as_many_numbers_as_asked_for_are_large_enough() -> None:
    assert large_enough(LAYERS, 0) == large_enough(LAYERS, 1 << 19) == LAYERS
    assert large_enough(LAYERS, SMALLEST) == LAYERS[1:]
    with pytest.raises(UnsupportedGraph, match="no linear layer of this model gains") as caught:
        large_enough(LAYERS, SMALLEST + 1)
    assert f"has {SMALLEST} numbers, {SMALLEST + 1} is the least" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(("keep", "rows"), [(1.0, 1), (0.5, 1), (0.35, 2), (0.1, 7)])
def test_rows_together_read_less_than_the_weight(keep: float, rows: int) -> None:
    assert rows_that_gain(keep) == rows
    assert rows == 1 or rows * keep < 1
