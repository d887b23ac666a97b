"""prunepass: a compiler that puts training-free token reduction inside exported vision models.

    program = prunepass.capture(model, (images,))
    plan = prunepass.plan(program, method="weighted-merge", flops=0.55)
    smaller = prunepass.apply_plan(program, plan)
    engine = prunepass.build(smaller, backend="onnx", folder="build/vit")

or all of it with `prunepass.compile`. Importing this loads torch and nothing heavier.
"""

from prunepass import language, vlm
from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.calibrate import Batch
from prunepass.capture import capture
from prunepass.compiler import Compiled, build, compile
from prunepass.errors import PrunepassError
from prunepass.importance.scores import LayerScores, layer_scores
from prunepass.kernels.sparse_linear import sparse_linear
from prunepass.plan import Plan, Step
from prunepass.planners.budget import plan
from prunepass.records import Site, Sites
from prunepass.report import Report
from prunepass.search.decide import plan_for

__all__ = [
    "Batch",
    "Compiled",
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
    "language",
    "layer_scores",
    "plan",
    "plan_for",
    "sites",
    "sparse_linear",
    "vlm",
]
__version__ = "0.1.0"
