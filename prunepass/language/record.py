"""What was done to a language model, layer by layer, as a file of its bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from prunepass.measure.environment import environment
from prunepass.plans import Plan
from prunepass.records import PassRecord


def as_json(
    plan: Plan, records: Sequence[PassRecord], seconds: Mapping[str, float],
    notes: Mapping[str, str],
) -> str:  # fmt: skip
    """Which layers read fewer inputs and how many, which stayed dense and why, as JSON text.

    Args:
        plan: What was done.
        records: What came of it.
        seconds: Of each stage.
        notes: What else is to be known of the engines.
    """
    keeps = {step.site: step for step in plan.steps if step.kind == "sparsify_inputs"}
    sparse = {
        site: {"rule": keeps[site].rule, "keep": round(float(keeps[site].keep), 4)}
        for record in records
        for site in record.applied
        if site in keeps
    }
    return json.dumps(
        {
            "method": plan.method,
            "notes": {**plan.notes, **notes},
            "sparse": sparse,
            "dense": {site: why for record in records for site, why in record.left.items()},
            "seconds": dict(seconds),
            "environment": environment(),
        },
        indent=2,
    )
