"""Running a captured program on streamed batches, with an eye on values inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from prunepass.errors import ModelError, first_line

Watch = Callable[[Tensor], Tensor | None]
"""Given the value of a node; what it returns takes its place, None leaves it."""


@dataclass(frozen=True)
class Batch:
    """One batch of calibration data.

    Attributes:
        inputs: What the program takes; axis 0 of each is the batch.
        labels: [B] int64, what is right, -1 for unknown; None where nothing is known.
        valid: [B, T], nonzero for tokens that are no padding; None where all count.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    valid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs[0])


class Watched(Interpreter):
    """Runs an opened program and shows values of some nodes; values go after their last use.

    Args:
        module: What `open_module` gave.
        watches: Node -> what is shown its value.
    """

    def __init__(self, module: GraphModule, watches: Mapping[Node, Watch]) -> None:
        super().__init__(module)
        self.watches = watches

    def run_node(self, n: Node) -> Any:
        """The value of a node, as its watch leaves it."""
        result = super().run_node(n)
        watch = self.watches.get(n)
        if watch is None:
            return result
        other = watch(result)
        return result if other is None else other


def scores_of(output: Any) -> Tensor:
    """Class scores [B, V] out of what a program returns: [B, V], or [B, 1, V] of a last token.

    Raises:
        ModelError: It returns something else.
    """
    first = output[0] if isinstance(output, (tuple, list)) else output
    if isinstance(first, Tensor) and first.dim() == 3 and first.shape[1] == 1:
        first = first[:, 0]
    if not isinstance(first, Tensor) or first.dim() != 2:
        shape = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ModelError(
            "this needs a model that returns class scores",
            found=f"an output of shape {shape}",
            fix="a model with its head, whose output is [batch, classes]",
        )
    return first


def run(module: GraphModule, batch: Batch, watches: Mapping[Node, Watch] | None = None) -> Any:
    """What a program returns for a batch.

    A program keeps the batch it was exported with apart from 1 only, so a single example runs
    twice; watches see both copies.

    Raises:
        ModelError: The program does not take such inputs.
    """
    inputs = batch.inputs
    if len(batch) == 1:
        inputs = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in inputs)
    try:
        if watches:
            return Watched(module, watches).run(*inputs)
        return module(*inputs)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(
            "the model does not run on the calibration data",
            found=f"inputs {[list(x.shape) for x in inputs]}: {first_line(error, most=200)}",
            fix="data of the kind and size the model takes",
        ) from error


def loss_of(output: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy of class scores against labels [B], float64."""
    scores = scores_of(output)[: len(labels)]
    return torch.nn.functional.cross_entropy(scores.double(), labels)


def targets(module: GraphModule, batch: Batch) -> Tensor:
    """[B] int64: the labels of a batch; what the model itself says where a label is missing."""
    labels = batch.labels
    if labels is not None and bool((labels >= 0).all()):
        return labels
    with torch.no_grad():
        said = scores_of(run(module, batch))[: len(batch)].argmax(dim=1)
    return said if labels is None else torch.where(labels >= 0, labels, said)
