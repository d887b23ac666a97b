"""Which pass does which kind of step, in the order they are applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from torch.export import ExportedProgram

from prunepass.passes.drop_layers import drop_layers
from prunepass.passes.prune_image_tokens import prune_image_tokens
from prunepass.passes.reduce_tokens import reduce_tokens
from prunepass.passes.rotate_inputs import rotate_inputs
from prunepass.passes.select_image_features import select_image_features
from prunepass.passes.sparsify_inputs import sparsify_inputs
from prunepass.plans import Step
from prunepass.records import PassRecord

Pass = Callable[[ExportedProgram, Sequence[Step]], tuple[ExportedProgram, PassRecord]]

PASSES: Mapping[str, Pass] = MappingProxyType(
    {
        "drop_layers": drop_layers,
        "reduce_tokens": reduce_tokens,
        "prune_image_tokens": prune_image_tokens,
        "select_image_features": select_image_features,
        "rotate_inputs": rotate_inputs,
        "sparsify_inputs": sparsify_inputs,
    }
)
