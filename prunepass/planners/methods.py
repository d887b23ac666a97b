"""The methods by name: a rule, an action, where it is applied, and the shape of its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from prunepass.errors import UsageError, nearest
from prunepass.plans import Action, Plain

DEFAULT = "weighted-merge"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to reduce tokens.

    Attributes:
        name: How the command line calls it.
        rule: Name of its rule.
        action: `drop` or `merge`.
        place: `attention`: between attention and MLP; `output`: at the end of a block.
        shape: `depth`: shares that grow with depth; `constant`: the same number at every block;
            `stages`: a few blocks only.
        options: Options of the rule.
        summary: One line.
        source: Paper, venue.
    """

    name: str
    rule: str
    action: Action
    place: Literal["attention", "output"]
    shape: Literal["depth", "constant", "stages"]
    options: Mapping[str, Plain] = field(default_factory=lambda: MappingProxyType({}))
    summary: str
    source: str


@dataclass(frozen=True)
class Stages:
    """A schedule of a few stages, given for a depth and scaled to others.

    Attributes:
        depth: Blocks of the model it was published for.
        tokens: Its tokens.
        blocks: Blocks after which tokens go, counted from 1.
        ratios: Share of the tokens that stays at each.
        similar: Tokens that the similarity stage takes at each.
        iterations: PageRank rounds at each.
    """

    depth: int
    tokens: int
    blocks: tuple[int, ...]
    ratios: tuple[float, ...]
    similar: tuple[int, ...]
    iterations: tuple[int, ...]


ZERO_TPRUNE_DEIT_S = Stages(
    depth=12,
    tokens=197,
    blocks=(1, 3, 6, 9, 11),
    ratios=(1.0, 0.9, 0.8, 0.7, 1.0),
    similar=(10, 10, 10, 10, 10),
    iterations=(30, 5, 5, 1, 1),
)
"""Zero-TPrune's schedule for DeiT-S: 197, 187, 160, 120, 77, 67 tokens, 3.076 GMAC."""

EVIT = Stages(
    depth=12,
    tokens=197,
    blocks=(4, 7, 10),
    ratios=(0.7, 0.7, 0.7),
    similar=(0, 0, 0),
    iterations=(5, 5, 5),
)
"""EViT's: 0.7 of the tokens stay in the fourth, seventh and tenth block, before the MLP."""

TOP_VIM = Stages(
    depth=24,
    tokens=197,
    blocks=(5, 10, 15, 20),
    ratios=(0.8, 0.8, 0.8, 0.8),
    similar=(0, 0, 0, 0),
    iterations=(5, 5, 5, 5),
)
"""ToP-ViM's for Vision Mamba: 0.8 of the patches stay every fifth of 24 layers."""

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        m.name: m
        for m in (
            Method(
                name="weighted-merge",
                rule="attention-weighted",
                action="merge",
                place="attention",
                shape="depth",
                summary="merges alike tokens at every block, those little attended first",
                source="prunepass",
            ),
            Method(
                name="tome",
                rule="tome",
                action="merge",
                place="attention",
                shape="constant",
                options=MappingProxyType({"heads": "mean"}),
                summary="merges the tokens with the most alike keys, as many at every block",
                source="Bolya et al., Token Merging, ICLR 2023",
            ),
            Method(
                name="zero-tprune",
                rule="zero-tprune",
                action="drop",
                place="output",
                shape="stages",
                summary="drops near-duplicates, then what weighted PageRank finds unimportant",
                source="Wang et al., Zero-TPrune, CVPR 2024",
            ),
            Method(
                name="page-rank",
                rule="page-rank",
                action="drop",
                place="output",
                shape="stages",
                summary="drops what weighted PageRank on the attention graph ranks last",
                source="Wang et al., Zero-TPrune, CVPR 2024 (I-stage alone)",
            ),
            Method(
                name="cls-attention",
                rule="cls-attention",
                action="drop",
                place="attention",
                shape="stages",
                summary="drops what the class token attends to least",
                source="Liang et al., EViT, ICLR 2022 (without its training and fused token)",
            ),
            Method(
                name="received-attention",
                rule="received-attention",
                action="drop",
                place="output",
                shape="stages",
                summary="drops what all tokens together attend to least",
                source="baseline",
            ),
            Method(
                name="key-norm",
                rule="key-norm",
                action="drop",
                place="output",
                shape="stages",
                summary="drops the tokens with the longest keys",
                source="Devoto et al., EMNLP 2024",
            ),
            Method(
                name="ssm-align",
                rule="scan-output",
                action="drop",
                place="output",
                shape="stages",
                options=MappingProxyType({"alignment": "decay0"}),
                summary="drops what comes out of state-space scans least, the gaps decay on",
                source="Zhan et al., token pruning in vision SSMs (ToP-ViM), NeurIPS 2024",
            ),
            Method(
                name="ssm-merge",
                rule="scan-output",
                action="merge",
                place="output",
                shape="stages",
                options=MappingProxyType({"alignment": "decay0"}),
                summary="as ssm-align, but what goes is merged into the most alike that stays",
                source="after Zhan et al., token reduction in SSMs (ToR), EMNLP 2024",
            ),
            Method(
                name="similar-hidden",
                rule="similar-hidden",
                action="drop",
                place="output",
                shape="stages",
                summary="drops near-duplicates among hidden states, no attention needed",
                source="Wang et al., Zero-TPrune, CVPR 2024 (S-stage, alternating split)",
            ),
            Method(
                name="random",
                rule="random",
                action="drop",
                place="output",
                shape="stages",
                summary="drops tokens at random positions, the baseline to beat",
                source="baseline",
            ),
        )
    }
)

DOWNSAMPLE = "downsample"
"""The baseline that is no reduction in the graph: the model at a smaller input."""


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        UsageError: The name is unknown.
    """
    if name not in METHODS:
        raise UsageError(
            f"unknown method {name!r}",
            found=name,
            fix=f"one of {nearest(name, [*METHODS, DOWNSAMPLE])}",
        )
    return METHODS[name]
