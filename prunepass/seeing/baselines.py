"""What stands beside a bundle at equal cost: random tokens, merging, a smaller picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunepass.analyse.flops import macs
from prunepass.bundle import Manifest
from prunepass.capturing import capture
from prunepass.downsample import shrunk
from prunepass.errors import ModelError, PrunepassError
from prunepass.html.facts import Quality
from prunepass.measure.fidelity import Fidelity, compare
from prunepass.passes.draft import draft
from prunepass.planners.budget import plan
from prunepass.planners.methods import DOWNSAMPLE
from prunepass.sources.model import load_model
from prunepass.sources.pictures import NO_LABEL

Batches = list[tuple[Tensor, Tensor]]
BESIDE = ("random", "tome")


def own(method: str, ratio: float, found: Fidelity, labels: Iterable[int]) -> Quality:
    """The row of a bundle itself."""
    return _row(method, ratio, found, labelled=NO_LABEL not in labels, own=True)


def baselines(
    manifest: Manifest, batches: Batches, dense: Tensor, say: Callable[[str], None]
) -> Iterator[Quality]:
    """Rows of the baselines at the cost of a bundle, run as drafts by PyTorch.

    Args:
        manifest: Of the bundle; its model is loaded again by its name.
        batches: Pictures and labels.
        dense: [N, classes], what the dense engine says of them.
        say: Told what is being done, and why a baseline is missing.
    """
    ratio = manifest.macs_ratio
    try:
        loaded = load_model(manifest.model, weights=_weights(manifest))
        program = capture(loaded.module, (loaded.example(),))
    except PrunepassError as error:
        say(f"no baselines: {error.what} ({error.found})")
        return
    whole = macs(program)
    for name in (*BESIDE, DOWNSAMPLE):
        say(f"{name} at {ratio:.3f} of the MACs")
        try:
            if name == DOWNSAMPLE:
                _, smaller = shrunk(
                    loaded, program, flops=ratio, name=manifest.model,
                    rebuild=lambda size: load_model(
                        manifest.model, weights=_weights(manifest), image_size=size
                    ).module,
                )  # fmt: skip
                module: nn.Module = smaller.module(check_guards=False)
                cost = macs(smaller) / whole
            else:
                made = plan(program, method=name, flops=ratio)
                module = draft(program, made.steps)
                cost = float(str(made.notes["macs_ratio"]))
        except PrunepassError as error:
            say(f"no {name} beside it: {error.what}")
            continue
        labels = torch.cat([label for _, label in batches])
        found = compare(dense, _scores(module, batches), labels)
        yield _row(name, cost, found, labelled=NO_LABEL not in labels.tolist())


def _row(name: str, ratio: float, found: Fidelity, *, labelled: bool, own: bool = False) -> Quality:
    return Quality(
        name=name, macs_ratio=ratio, agreement=found.agreement, kl=found.kl,
        kl_error=found.kl_error, top1=found.top1 if labelled else None, own=own,
    )  # fmt: skip


def _scores(module: Callable[..., Any], batches: Batches) -> Tensor:
    found = []
    with torch.no_grad():
        for images, _ in batches:
            made = module(images)
            found.append(made[0] if isinstance(made, (tuple, list)) else made)
    return torch.cat(found)


def _weights(manifest: Manifest) -> str:
    """Words of `--weights` that give the weights a bundle was made of.

    Raises:
        ModelError: They are not here.
    """
    given = {"pretrained": "pretrained", "random": "random", "as built": "pretrained"}
    if manifest.weights in given:
        return given[manifest.weights]
    if Path(manifest.weights).is_file():
        return manifest.weights
    raise ModelError(
        f"the weights of {manifest.model} are not here",
        found=manifest.weights,
        fix="call it where the weights lie",
    )
