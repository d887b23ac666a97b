"""The report: plain numbers, as JSON and as text."""

from __future__ import annotations

import json
from dataclasses import replace

from prunepass.report import Report

REPORT = Report(
    model="tiny",
    weights="random",
    method="tome",
    backend="onnx",
    batch=None,
    macs_dense=2_000_000_000,
    macs=1_300_000_000,
    parameters=12,
    tokens={"block[0].attention": (197, 100), "block[1].attention": (100, 50)},
    difference_dense=1.5e-7,
    difference=2.5e-6,
    seconds={"capture": 1.25, "plan": 0.5},
    environment={"threads": 2},
)


def test_json_has_every_fact() -> None:
    data = json.loads(REPORT.to_json())
    assert data["macs_ratio"] == 0.65
    assert data["flops_dense"] == 4_000_000_000
    assert data["flops"] == 2_600_000_000
    assert data["tokens"] == {"block[0].attention": [197, 100], "block[1].attention": [100, 50]}
    assert data["batch"] is None
    assert data["environment"] == {"threads": 2}
    assert set(data) - {"macs_ratio", "flops", "flops_dense"} == set(REPORT.__dict__)


def test_text_says_what_matters() -> None:
    text = str(REPORT)
    for part in (
        "tiny, weights random", "tome, backend onnx, batch any", "197 100 50",
        "2.000 G -> 1.300 G", "(0.650)", "1.5e-07 (dense), 2.5e-06", "capture 1.2 s",
        "random weights: speed and structure only",
    ):  # fmt: skip
        assert part in text


def test_text_without_reductions_and_with_real_weights() -> None:
    text = str(replace(REPORT, weights="pretrained", tokens={}, batch=8, macs=2_000_000_000))
    assert "random" not in text
    assert "batch 8" in text
    assert "all" in text
    assert "(1.000)" in text


def test_a_model_without_products_has_ratio_one() -> None:
    assert replace(REPORT, macs=0, macs_dense=0).macs_ratio == 1.0
