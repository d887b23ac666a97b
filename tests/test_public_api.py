"""What `import prunepass` offers; a change here is a change of the contract."""

from __future__ import annotations

import inspect

import prunepass


def test_names() -> None:
    assert prunepass.__all__ == [
        "Batch", "Compiled", "Counts", "Finding", "LayerScores", "Plan", "PrunepassError", "Report",
        "Site", "Sites", "Step", "apply_plan", "build", "capture", "compile", "counts", "examine",
        "language",
        "layer_scores", "plan", "plan_for", "sites", "sparse_linear", "vlm",
    ]  # fmt: skip
    assert all(hasattr(prunepass, name) for name in prunepass.__all__)


def test_everything_says_what_it_is() -> None:
    for name in prunepass.__all__:
        assert inspect.getdoc(getattr(prunepass, name)), name


def test_calls_as_documented() -> None:
    def parameters(function: object) -> set[str]:
        return set(inspect.signature(function).parameters)

    assert {"program", "method", "flops", "action", "at"} <= parameters(prunepass.plan)
    assert {"program", "batches", "scores", "checkpoint"} <= parameters(prunepass.layer_scores)
    assert {"program", "images", "target", "floor", "minutes"} <= parameters(prunepass.plan_for)
    assert {"program", "backend", "folder", "batch"} <= parameters(prunepass.build)
    assert {
        "model", "inputs", "method", "flops", "plan", "backend", "folder", "batch", "force",
    } <= parameters(prunepass.compile)  # fmt: skip
