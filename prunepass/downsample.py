"""The baseline that reduces nothing inside the graph: the same model at a smaller picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites
from prunepass.backends.protocol import Backend
from prunepass.capturing import capture
from prunepass.compiler import Compiled, assemble
from prunepass.engines import available
from prunepass.errors import PlanError
from prunepass.planners.methods import DOWNSAMPLE
from prunepass.plans import Plan, check_keep
from prunepass.rules.shrink import shrink, shrinking
from prunepass.sources.model import LoadedModel
from prunepass.stages import Clock


class Downsampled(nn.Module):
    """A model that shrinks its pictures first.

    Args:
        model: Takes pictures [B, 3, smaller, smaller].
        size: Pixels a side of what comes in.
        smaller: Pixels a side that are left.
    """

    def __init__(self, model: nn.Module, size: int, smaller: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("side", shrinking(size, smaller))

    def forward(self, images: Tensor) -> Tensor:
        """The model's output for pictures [B, 3, size, size]."""
        side = self.get_buffer("side")
        output: Tensor = self.model(shrink(images, side, side))
        return output


def downsample(
    loaded: LoadedModel,
    *,
    flops: float,
    rebuild: Callable[[int], nn.Module],
    folder: Any,
    backend: str | Backend,
    batch: int | None,
    force: bool,
    name: str,
    weights: str,
    preprocessing: Any,
    on_stage: Any,
    keep_program: bool = True,
    step: int | None = None,
) -> Compiled:
    """A bundle of the model beside itself at the largest picture size within a budget.

    Args:
        loaded: The model.
        flops: MACs wanted relative to the dense model, in (0, 1]; sizes come in whole patches, so
            the ratio reached lies at or below it.
        rebuild: Makes the same model for another picture size.
        folder: The bundle to write; the remaining arguments are those of `prunepass.compile`.
        step: Pixels between two sizes, None for the patch size.

    Raises:
        PlanError: No size fits the budget.
        ModelError: The model cannot be built at another size.
    """
    check_keep(float(flops), where="the budget (flops)")
    chosen = available(backend)
    clock = Clock(on_stage)
    with clock("capture"):
        program = capture(loaded.module, (loaded.example(),))
        size, smaller = shrunk(loaded, program, flops=flops, rebuild=rebuild, name=name, step=step)
    made = Plan(
        method=DOWNSAMPLE,
        steps=(),
        fingerprint=sites(program).fingerprint,
        notes={
            "image_size": size,
            "macs_ratio": round(macs(smaller) / macs(program), 4),
            "flops": flops,
        },
    )
    return assemble(
        program, smaller, made, [], chosen, folder, clock=clock, batch=batch, force=force,
        name=name, weights=weights, preprocessing=preprocessing, keep_program=keep_program,
    )  # fmt: skip


def shrunk(
    loaded: LoadedModel,
    program: ExportedProgram,
    *,
    flops: float,
    rebuild: Callable[[int], nn.Module],
    name: str,
    step: int | None = None,
) -> tuple[int, ExportedProgram]:
    """The largest picture size within a budget, and the program that shrinks pictures to it.

    Args:
        loaded: The model.
        program: What it is at its own size.
        flops: MACs wanted relative to that, at most.
        rebuild: Makes the same model for another picture size.
        name: What to call the model in an error.
        step: Pixels between two sizes, None for the patch size.

    Raises:
        PlanError: No size fits the budget.
        ModelError: The model cannot be built at another size.
    """
    dense, size = macs(program), loaded.preprocessing.height
    full, smaller = size, program
    step = step or _patch(loaded.module) or 16
    while macs(smaller) > flops * dense:
        size -= step
        if size < 2 * step:
            raise PlanError(
                f"no picture size of {name} fits {flops:.3f} of the MACs",
                found=f"{size + step} pixels are still too many",
                fix="a larger budget",
            )
        # MACs fall at least with the area, so a size far above the budget need not be built.
        if (size / full) ** 2 > flops * 1.1:
            continue
        smaller = capture(Downsampled(rebuild(size), full, size).eval(), (loaded.example(),))
    return size, smaller


def _patch(module: nn.Module) -> int | None:
    """The stride of the first convolution, which in these models cuts the picture into patches."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            stride = part.stride[0]
            return int(stride) if isinstance(stride, int) and stride > 1 else None
    return None
