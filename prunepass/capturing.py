"""From a live module to a labelled program."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from prunepass.analyse.sites import label_sites
from prunepass.errors import CaptureError


def capture(
    model: nn.Module | ExportedProgram,
    inputs: tuple[torch.Tensor, ...],
    *,
    dynamic_batch: bool = True,
) -> ExportedProgram:
    """The model as a labelled `torch.export` program, undecomposed.

    Args:
        model: A module in eval mode, or a program exported elsewhere.
        inputs: Example inputs; axis 0 of each is the batch. One example is enough.
        dynamic_batch: Whether the program takes any batch size.

    Raises:
        CaptureError: The model is in training mode, or torch.export refuses it.
    """
    if isinstance(model, ExportedProgram):
        return label_sites(model)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            "only a torch.nn.Module can be captured", found=type(model).__name__, fix="pass a model"
        )
    if any(module.training for module in model.modules()):
        raise CaptureError(
            "cannot capture a model in training mode",
            found="model.training is True somewhere",
            fix="call model.eval() first",
        )
    if not isinstance(inputs, tuple) or not all(isinstance(x, torch.Tensor) for x in inputs):
        raise CaptureError(
            "example inputs must be a tuple of tensors",
            found=type(inputs).__name__,
            fix="capture(model, (images,))",
        )
    shapes: Any = None
    if dynamic_batch:
        # torch.export takes a dimension of size 1 for a constant, so one example becomes two.
        inputs = tuple(
            x.expand(2, *x.shape[1:]).contiguous() if x.shape[0] == 1 else x for x in inputs
        )
        batch = Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        first = str(error).strip().splitlines()
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__}",
            found=f"{type(error).__name__}: {first[0][:300] if first else ''}",
            fix="x.shape[0] in place of len(x), which fixes the batch; or dynamic_batch=False",
        ) from error
    return label_sites(program)
