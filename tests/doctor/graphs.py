"""For each rule a graph that falls into its trap, and one beside it that does not."""

from __future__ import annotations

from tests.doctor import onnxruntime_graphs, program_graphs, tensorrt_graphs
from tests.doctor.makers import Example

EXAMPLES: dict[str, Example] = {
    **onnxruntime_graphs.EXAMPLES,
    **tensorrt_graphs.EXAMPLES,
    **program_graphs.EXAMPLES,
}
