"""Methods that take image tokens out of vision-language models, and the steps they plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from prunepass.errors import PlanError, UsageError, looked_up, nearest
from prunepass.plans import Plain, Step, check_keep

PLANS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"high": (0.875, 0.625, 0.125), "low": (0.625, 0.1875, 0.0625)}
)
"""TransPrune's named plans. `low` is not published; these are the only sixteenths that give the
printed costs of both models."""


@dataclass(frozen=True, kw_only=True)
class ImageMethod:
    """One row of the table.

    Attributes:
        name: How users call it.
        rule: Rule of its steps.
        after: Layers of 32 behind which tokens go, from 1; empty where they go before the first.
        keep: Share of the image tokens that stays behind each.
        positions: What becomes of positions where the model leaves a choice.
        rows: Which text is asked, `text` or `last`.
        options: Options of the steps.
        accumulates: Whether transitions from the first to the last such layer are summed up.
        source: Paper.
        summary: One line.
    """

    name: str
    rule: str
    after: tuple[int, ...] = ()
    keep: tuple[float, ...]
    positions: str = "keep_original"
    rows: str = "text"
    options: Mapping[str, Plain] = field(default_factory=lambda: MappingProxyType({}))
    accumulates: bool = False
    source: str
    summary: str


def _method(name: str, **rest: object) -> tuple[str, ImageMethod]:
    return name, ImageMethod(name=name, **rest)  # type: ignore[arg-type]


IMAGE_METHODS: Mapping[str, ImageMethod] = MappingProxyType(
    dict(
        [
            _method(
                "transprune",
                rule="transition-and-instruction",
                after=(7, 9, 12),
                keep=PLANS["high"],
                positions="compact",
                accumulates=True,
                source="TransPrune, CVPR 2026, arXiv 2507.20630",
                summary="how much layers change a token, and how much the text looks at it",
            ),
            _method(
                "transition",
                rule="transition",
                after=(7, 9, 12),
                keep=PLANS["high"],
                positions="compact",
                accumulates=True,
                source="TransPrune, TTV alone",
                summary="how much layers change a token",
            ),
            _method(
                "instruction",
                rule="instruction",
                after=(7, 9, 12),
                keep=PLANS["high"],
                positions="compact",
                source="TransPrune, IGA alone",
                summary="how much the text looks at a token",
            ),
            _method(
                "fastv",
                rule="instruction",
                after=(2,),
                keep=(0.5,),
                rows="last",
                options=MappingProxyType({"layer": "own"}),
                source="FastV, ECCV 2024, arXiv 2403.06764",
                summary="what the last token of the prompt looks at in an early layer",
            ),
            _method(
                "pyramiddrop",
                rule="instruction",
                after=(8, 16, 24),
                keep=(0.5, 0.25, 0.125),
                positions="compact",
                rows="last",
                source="PyramidDrop, CVPR 2025, arXiv 2410.17247",
                summary="what the last token of the prompt looks at, in three stages",
            ),
            _method(
                "sparsevlm",
                rule="instruction",
                after=(3, 7, 16),
                keep=(300 / 576, 200 / 576, 110 / 576),
                positions="compact",
                options=MappingProxyType({"layer": "own", "raters": True}),
                source="SparseVLM, ICML 2025, arXiv 2410.04417; scores and schedule, no merging",
                summary="what the text that is like the image looks at",
            ),
            _method(
                "visionzip",
                rule="vision-zip",
                keep=(64 / 576,),
                source="VisionZip, CVPR 2025, arXiv 2412.04467",
                summary="what the encoder's class token looks at, the rest merged",
            ),
            _method(
                "divprune",
                rule="diverse",
                keep=(0.098,),
                source="DivPrune, CVPR 2025, arXiv 2503.02175",
                summary="image tokens that are far from each other",
            ),
            _method(
                "random",
                rule="random-image-tokens",
                after=(7, 9, 12),
                keep=PLANS["high"],
                positions="compact",
                source="baseline of the token pruning papers",
                summary="the same random tokens in every image, behind the same layers",
            ),
            _method(
                "downsample",
                rule="smaller-picture",
                keep=(0.25,),
                source="baseline: the encoder at a smaller picture",
                summary="the encoder sees a smaller picture and makes fewer image tokens",
            ),
        ]
    )
)
"""What `prunepass.vlm.compile` can do, by name. `none` besides: nothing is taken out."""

NONE = "none"
DOWNSAMPLE = "downsample"
"""The one method that changes what the encoder sees and no graph: it plans no step."""


def image_method(name: str) -> ImageMethod:
    """The row called `name`.

    Raises:
        UsageError: There is none; the known names are listed, nearest first.
    """
    return looked_up(IMAGE_METHODS, name, "method for vision-language models", UsageError)


def scaled_layers(after: Sequence[int], layers: int, *, of: int = 32) -> tuple[int, ...]:
    """Layers of a model `of` layers deep, at the same depth of one that has `layers`: ascending.

    Raises:
        PlanError: The model has too few layers for so many stages.
    """
    found: list[int] = []
    for layer in after:
        found.append(max(found[-1] + 1 if found else 1, round(layer * layers / of)))
    if found and found[-1] >= layers:
        raise PlanError(
            f"{len(after)} stages do not fit a model of {layers} layers",
            found=f"behind layers {tuple(found)}",
            fix="name layers with after=(...), or another method",
        )
    return tuple(found)


def image_steps(
    method: str,
    *,
    layers: int,
    image_tokens: int,
    keep: Sequence[float] | str | None = None,
    after: Sequence[int] | None = None,
    positions: str | None = None,
    options: Mapping[str, Plain] | None = None,
) -> tuple[Step, ...]:
    """The steps of a method on one model; `none` and `downsample` have none.

    Args:
        method: A key of `IMAGE_METHODS`, or `none`.
        layers: Decoder layers.
        image_tokens: Tokens of an image, where a method needs a count.
        keep: Shares of the original image tokens, one a stage; the name of a plan; None for the
            method's own.
        after: Layers behind which tokens go, from 1; None for the method's own, scaled to the
            depth.
        positions: `keep_original` or `compact`, None for the method's own.
        options: Further options of the rule.

    Raises:
        PlanError: Something of this is unknown, or does not fit.
    """
    if method == NONE:
        return ()
    row = image_method(method)
    shares = _shares(keep, row)
    if not row.after:
        _check_one_stage(method, shares, after)
        if method == DOWNSAMPLE:
            return ()
        count = max(1, round(shares[0] * image_tokens))
        return (
            Step(
                kind="select_image_features", site="image_features", rule=row.rule, keep=count,
                options={**row.options, **(options or {})},
            ),
        )  # fmt: skip
    behind = tuple(after) if after is not None else scaled_layers(row.after, layers)
    if len(behind) != len(shares):
        raise PlanError(
            "each pruning layer needs a share to keep",
            found=f"layers {behind}, shares {shares}",
            fix=f"{len(behind)} shares, such as keep={PLANS['high'][: len(behind)]}",
        )
    common: dict[str, Plain] = {"positions": positions or row.positions, **row.options}
    if row.accumulates:
        common["accumulate"] = list(range(behind[0], behind[-1] + 1))
    common.update(options or {})
    return tuple(
        Step(
            kind="prune_image_tokens", site=f"block[{layer - 1}].output", rule=row.rule,
            keep=share, options=common,
        )
        for layer, share in zip(behind, shares, strict=True)
    )  # fmt: skip


def picture_share(keep: Sequence[float] | str | None) -> float:
    """The share of the image tokens that `downsample` leaves.

    Raises:
        PlanError: It is no share, or there are several.
    """
    shares = _shares(keep, image_method(DOWNSAMPLE))
    _check_one_stage(DOWNSAMPLE, shares, None)
    return shares[0]


def _check_one_stage(method: str, shares: Sequence[float], after: Sequence[int] | None) -> None:
    if after:
        raise PlanError(
            f"{method} takes tokens out before the first layer",
            found=f"after={tuple(after)}",
            fix="leave `after` out",
        )
    if len(shares) != 1:
        raise PlanError(
            f"{method} takes tokens out once, before the first layer",
            found=f"keep={tuple(shares)}",
            fix=f"one share, such as keep=({shares[-1]},)",
        )


def _shares(keep: Sequence[float] | str | None, row: ImageMethod) -> tuple[float, ...]:
    if keep is None:
        return row.keep
    if isinstance(keep, str):
        if keep not in PLANS:
            raise PlanError(
                f"there is no plan called {keep!r}",
                found=repr(keep),
                fix=f"one of {nearest(keep, PLANS)}, or shares such as 0.875,0.625,0.125",
            )
        keep = PLANS[keep]
    shares = tuple(float(share) for share in keep)
    for share in shares:
        check_keep(share, where=row.name)
    return shares
