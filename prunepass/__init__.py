"""prunepass: a compiler that puts training-free token reduction inside exported vision models.

    program = prunepass.capture(model, (images,))
    plan = prunepass.plan(program, method="weighted-merge", flops=0.55)
    smaller = prunepass.apply_plan(program, plan)
    engine = prunepass.build(smaller, backend="onnx", folder="build/vit")

or all of it with `prunepass.compile`. Importing this loads nothing; a name loads what it needs at
its first use, torch above all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunepass import language, vlm
    from prunepass.analyse.counting import Counts, counts
    from prunepass.analyse.sites import sites
    from prunepass.apply import apply_plan
    from prunepass.calibrate import Batch
    from prunepass.capturing import capture
    from prunepass.compiler import Compiled, compile
    from prunepass.doctor.findings import Finding, examine
    from prunepass.engines import build
    from prunepass.errors import PrunepassError
    from prunepass.importance.scores import LayerScores, layer_scores
    from prunepass.kernels.sparse_linear import sparse_linear
    from prunepass.planners.budget import plan
    from prunepass.plans import Plan, Step
    from prunepass.records import Site, Sites
    from prunepass.report import Report
    from prunepass.search.decide import plan_for

__all__ = [
    "Batch",
    "Compiled",
    "Counts",
    "Finding",
    "LayerScores",
    "Plan",
    "PrunepassError",
    "Report",
    "Site",
    "Sites",
    "Step",
    "apply_plan",
    "build",
    "capture",
    "compile",
    "counts",
    "examine",
    "language",
    "layer_scores",
    "plan",
    "plan_for",
    "sites",
    "sparse_linear",
    "vlm",
]
__version__ = "0.1.0"

_HOMES = {
    "Batch": "calibrate",
    "Compiled": "compiler",
    "Counts": "analyse.counting",
    "Finding": "doctor.findings",
    "LayerScores": "importance.scores",
    "Plan": "plans",
    "PrunepassError": "errors",
    "Report": "report",
    "Site": "records",
    "Sites": "records",
    "Step": "plans",
    "apply_plan": "apply",
    "build": "engines",
    "capture": "capturing",
    "compile": "compiler",
    "counts": "analyse.counting",
    "examine": "doctor.findings",
    "layer_scores": "importance.scores",
    "plan": "planners.budget",
    "plan_for": "search.decide",
    "sites": "analyse.sites",
    "sparse_linear": "kernels.sparse_linear",
}
"""Where a name of this package is made. No file of the package has the name of one of them."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"prunepass.{_HOMES[name]}"), name)
    if name in ("language", "vlm"):
        return import_module(f"prunepass.{name}")
    raise AttributeError(f"module 'prunepass' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
