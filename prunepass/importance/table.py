"""The layer scores by name: what each is worked out from, and which end of it is important."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from prunepass.calibrate import Batch
from prunepass.importance.losses import gradients, slopes, suppressions
from prunepass.importance.streams import cosine_sums, hidden_moments
from prunepass.importance.subject import Subject, Sums
from prunepass.rules.ecoflap import first_order_importance
from prunepass.rules.input_modification import block_influence, input_modification
from prunepass.rules.principal_components import principal_components
from prunepass.rules.suppression import suppression_effects
from prunepass.rules.z_scores import z_score_share

Measure = Callable[[Subject, Batch, int], Sums]
Values = Mapping[str, float]
"""Site -> score; `block[3]`, `block[3].attention`, `block[3].mlp`."""


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """One way to score layers.

    Attributes:
        name: How the command line calls it.
        summary: One line.
        source: Paper, venue.
        measure: What a batch adds to; None where no data is needed.
        values: Scores out of the sums.
        high_matters: Whether a higher score is a more important layer.
        classifies: Whether it needs class scores, or the logits of a last token.
    """

    name: str
    summary: str
    source: str
    measure: Measure | None
    values: Callable[[Subject, Mapping[str, Tensor]], Values]
    high_matters: bool = True
    classifies: bool = False


def _lim(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    return {
        site: float(input_modification(sums[f"cosine.{site}"], sums[f"tokens.{site}"]))
        for site in _sites(subject)
    }


def _bi(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    return {
        site: float(block_influence(sums[f"cosine.{site}"], sums[f"tokens.{site}"]))
        for site in _sites(subject)
    }


def _zd(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    return {
        site: z_score_share([subject.weights[name] for name in names])
        for site, names in _weights(subject).items()
    }


def _ecoflap(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    return {
        site: sum(float(sums[f"slope.{name}"]) for name in names)
        for site, names in _weights(subject).items()
    }


def _ecoflap_first(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    each = {
        key.removeprefix("gradient."): first_order_importance(
            subject.weights[key.removeprefix("gradient.")], total / sums["batches"]
        )
        for key, total in sums.items()
        if key.startswith("gradient.")
    }
    return {
        site: sum(each.get(name, 0.0) for name in names)
        for site, names in _weights(subject).items()
    }


def _suppress(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    effects = suppression_effects(sums["suppress.products"], sums["suppress.answers"]).tolist()
    found = {b.site: e for b, e in zip(subject.branches, effects, strict=True)}
    return _with_blocks(subject, found)


def _wpca(subject: Subject, sums: Mapping[str, Tensor]) -> Values:
    found = {}
    for branch in subject.branches:
        keys = [f"{name}.{branch.site}" for name in ("second", "total", "count")]
        if keys[0] in sums:
            components = principal_components(*(sums[key] for key in keys))
            found[branch.site] = float(components * _parameters(subject, branch.weights))
    blocks = {}
    for block in subject.blocks:
        # Of a block, the hidden state of its feed-forward layer speaks for all its parameters.
        told = [b for b in block.branches if b.kind == "mlp" and b.site in found]
        told = told or [b for b in block.branches if b.site in found]
        own = _parameters(subject, block.weights)
        parts = [found[b.site] / max(1, _parameters(subject, b.weights)) for b in told]
        blocks[block.site] = max(parts, default=0.0) * own
    return {**blocks, **found}


def _sites(subject: Subject) -> list[str]:
    return [block.site for block in subject.blocks] + [b.site for b in subject.branches]


def _weights(subject: Subject) -> dict[str, tuple[str, ...]]:
    return {block.site: block.weights for block in subject.blocks} | {
        branch.site: branch.weights for branch in subject.branches
    }


def _with_blocks(subject: Subject, found: Mapping[str, float]) -> Values:
    """The scores of branches with their sums over blocks."""
    blocks = {block.site: sum(found[b.site] for b in block.branches) for block in subject.blocks}
    return {**blocks, **found}


def _parameters(subject: Subject, names: tuple[str, ...]) -> int:
    return sum(subject.weights[name].numel() for name in names)


LAYER_SCORES: Mapping[str, LayerScore] = MappingProxyType(
    {
        score.name: score
        for score in (
            LayerScore(
                name="lim",
                summary="how much a layer turns the tokens that run through it",
                source="Layer-Wise Quantization, arXiv 2406.17415",
                measure=cosine_sums,
                values=_lim,
            ),
            LayerScore(
                name="bi",
                summary="block influence, 1 + lim",
                source="ShortGPT, arXiv 2403.03853",
                measure=cosine_sums,
                values=_bi,
            ),
            LayerScore(
                name="zd",
                summary="share of weights far above their mean; fewer is more important; no data",
                source="Layer-Wise Quantization, arXiv 2406.17415",
                measure=None,
                values=_zd,
                high_matters=False,
            ),
            LayerScore(
                name="ecoflap",
                summary="slope of the loss along random directions of each matrix, forward only",
                source="ECoFLaP, ICLR 2024",
                measure=slopes,
                values=_ecoflap,
                classifies=True,
            ),
            LayerScore(
                name="ecoflap-first",
                summary="weights times gradients of the loss",
                source="ECoFLaP, ICLR 2024 (first order)",
                measure=gradients,
                values=_ecoflap_first,
                classifies=True,
            ),
            LayerScore(
                name="suppress",
                summary="rise of the loss where a random half of the branches is damped, regressed",
                source="after IST, EMNLP 2024 Findings (without its training)",
                measure=suppressions,
                values=_suppress,
                classifies=True,
            ),
            LayerScore(
                name="wpca",
                summary="principal components of the hidden state, times parameters",
                source="W-PCA, ICLR 2025",
                measure=hidden_moments,
                values=_wpca,
            ),
        )
    }
)
