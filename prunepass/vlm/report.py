"""What a compiled vision-language model gained, as the report of its bundle."""

from __future__ import annotations

from collections.abc import Mapping

from prunepass.measure.environment import environment
from prunepass.report import Report
from prunepass.vlm.cost import TEXT
from prunepass.vlm.manifest import VlmManifest
from prunepass.vlm.rewrite import Rewritten

EXAMPLE = f"a prompt of one picture and {TEXT} words"
IN_FRONT = "in front of the language model"


def told_of(
    made: Rewritten, *, parameters: int, difference: float, seconds: Mapping[str, float],
    weights: str,
) -> Report:  # fmt: skip
    """The report of a bundle.

    Args:
        made: What was built.
        parameters: Of the model as it was.
        difference: The largest one of an engine from its program.
        seconds: Of each stage.
        weights: Where they came from.
    """
    manifest = made.manifest
    return Report(
        model=manifest.model,
        weights=weights,
        method=manifest.method,
        backend=manifest.backend,
        batch=None,
        example=EXAMPLE,
        macs_dense=made.dense.macs,
        macs=made.cost.macs,
        parameters=parameters,
        tokens=_tokens(manifest, made.image_tokens),
        difference_dense=None,
        difference=difference,
        seconds=dict(seconds),
        parts={"dense": made.dense.parts, "compressed": made.cost.parts},
        environment=environment(),
    )


def _tokens(manifest: VlmManifest, image_tokens: int) -> dict[str, tuple[int, int]]:
    """Where image tokens go, and how many there are before and behind."""
    left = manifest.left(image_tokens if manifest.image_tokens is None else None)
    found = {}
    if left[0] < image_tokens:
        found[IN_FRONT] = (image_tokens, left[0])
    for first in manifest.first_layers[1:]:
        found[f"behind layer {first}"] = (left[first - 1], left[first])
    return found
