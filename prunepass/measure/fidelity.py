"""How near a compressed model stays to the dense one, on labelled pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunepass.errors import ModelError

Run = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Fidelity:
    """Quality of a compressed classifier beside the dense one.

    Attributes:
        count: Pictures.
        top1_dense: Share of pictures the dense model gets right.
        top1: Share the compressed model gets right.
        top5_dense: Share with the label among the dense model's first five.
        top5: The same for the compressed model.
        agreement: Share of pictures with the same first class in both.
        kl: Mean KL divergence (dense || compressed) of the class probabilities, nats.
        kl_error: Standard error of `kl`.
    """

    count: int
    top1_dense: float
    top1: float
    top5_dense: float
    top5: float
    agreement: float
    kl: float
    kl_error: float


def fidelity(
    dense: Run,
    compressed: Run,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """The fidelity over batches of (images [B, 3, H, W], labels [B] int64, -1 for none).

    Raises:
        ModelError: There are no pictures, or the model does not return class scores [B, N].
    """
    before, after, labels = [], [], []
    for images, label in batches:
        before.append(_scores(dense(images)))
        after.append(_scores(compressed(images)))
        labels.append(label)
        if progress is not None:
            progress(len(label))
    if not labels:
        raise ModelError("no pictures to evaluate on", found="0 pictures", fix="another --images")
    return compare(torch.cat(before), torch.cat(after), torch.cat(labels))


def compare(dense: Tensor, compressed: Tensor, labels: Tensor) -> Fidelity:
    """The fidelity of class scores [N, classes] against those of the dense model."""
    divergence = kl(dense, compressed)
    top1_dense, top5_dense = _accuracy(dense, labels)
    top1, top5 = _accuracy(compressed, labels)
    return Fidelity(
        count=len(labels),
        top1_dense=top1_dense,
        top1=top1,
        top5_dense=top5_dense,
        top5=top5,
        agreement=float((dense.argmax(1) == compressed.argmax(1)).double().mean()),
        kl=float(divergence.mean()),
        kl_error=float(divergence.std() / len(labels) ** 0.5) if len(labels) > 1 else 0.0,
    )


def kl(dense: Tensor, compressed: Tensor) -> Tensor:
    """KL(dense || compressed) of each row of class scores [N, classes], in nats: [N] float64."""
    p, q = dense.double().log_softmax(1), compressed.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def _accuracy(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hit = best == labels[:, None]
    return float(hit[:, 0].double().mean()), float(hit.any(1).double().mean())


def _scores(outputs: tuple[Tensor, ...]) -> Tensor:
    if outputs[0].dim() != 2:
        raise ModelError(
            "quality needs a classifier",
            found=f"the first output has shape {list(outputs[0].shape)}",
            fix="a model that returns class scores [batch, classes]",
        )
    return outputs[0]
