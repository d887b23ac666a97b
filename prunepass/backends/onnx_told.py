"""Values inside an ONNX file that can be asked for by name: which tokens stay.

They are outputs while the graph is tidied, so that no pass takes them out or gives them another
name, and no outputs of the file: ONNX Runtime takes it as if they had no name at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from prunepass.graph import meta


@contextlib.contextmanager
def held(model: Any, program: ExportedProgram) -> Iterator[None]:
    """A stretch in which what a program tells stays in an `onnx_ir.Model`, named by its label."""
    names = {
        node.name: label for label, node in meta.labelled(program.graph).items()
        if meta.is_told(label)
    }  # fmt: skip
    outputs = model.graph.outputs
    own = len(outputs)
    for node in model.graph:
        for value in node.outputs:
            # An output of the model's own keeps its name.
            if value.name in names and not value.is_graph_output():
                value.name = names[value.name]
                outputs.append(value)
    yield
    del outputs[own:]


def asked(path: Path) -> tuple[bytes, tuple[str, ...]]:
    """The model in a file, with what it can tell as outputs behind its own, and their names."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    names = [o for node in model.graph.node for o in node.output if meta.is_told(o)]
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return model.SerializeToString(), tuple(names)
