"""Very small state-space models with weights that matter, and programs of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from prunepass.models.plain_mamba import PlainMamba
from prunepass.models.vim import Vim
from torch.export import ExportedProgram

from prunepass.analyse.sites import sites
from prunepass.apply import apply_plan
from prunepass.capturing import capture
from prunepass.plans import Plan, Step


def _shaken(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.endswith("log"):
            parameter.data.normal_(0, 0.2, generator=generator)
        if "dt_proj" in name and name.endswith("bias"):
            parameter.data.uniform_(-2, -1, generator=generator)  # steps of 0.1 to 0.3
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.2, generator=generator)
    return model.double().eval()


def small_vim() -> Any:
    """26 tokens: 5 x 5 patches of 8 pixels and the class token behind the twelfth."""
    return _shaken(Vim(image_size=40, patch=8, channels=12, depth=3, states=5, classes=7), 1)


def small_plain_mamba(*, as_published: bool) -> Any:
    """25 tokens, three layers, the first with its convolution over the grid."""
    model = PlainMamba(
        image_size=40, patch=8, channels=12, depth=3, states=5, classes=7,
        as_published=as_published,
    )  # fmt: skip
    return _shaken(model, 2)


MODELS: dict[str, Any] = {
    "vim": small_vim,
    "plain_mamba": functools.partial(small_plain_mamba, as_published=False),
    "published_plain_mamba": functools.partial(small_plain_mamba, as_published=True),
}


@functools.cache
def model_and_program(name: str) -> tuple[Any, ExportedProgram]:
    model = MODELS[name]()
    return model, capture(model, (pictures(2),))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 40, 40, generator=generator, dtype=torch.float64)


def pruned(
    program: ExportedProgram, keep: dict[int, float], *, rule: str = "scan-output",
    action: Any = "drop", **options: Any,
) -> ExportedProgram:  # fmt: skip
    """The program with tokens reduced behind some blocks."""
    steps = tuple(
        Step(
            kind="reduce_tokens", site=f"block[{block}].output", rule=rule, keep=share,
            action=action, options=options,
        )
        for block, share in keep.items()
    )  # fmt: skip
    made = Plan(method="test", steps=steps, fingerprint=sites(program).fingerprint)
    return apply_plan(program, made)
