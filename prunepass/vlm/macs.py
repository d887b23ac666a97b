"""What prefill of a vision-language model costs, as papers count it and as a machine pays it.

Multiply-accumulates of products of matrices; norms, softmax and element-wise work are not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from prunepass.errors import PlanError


def image_token_macs(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    image_tokens: int,
    prune_after: Sequence[int] = (),
    keep: Sequence[float] = (),
) -> int:
    """MACs of the image tokens alone in the language model, as the papers count them.

    Layer by layer 4 n d^2 + 2 n^2 d + 3 n d m for n image tokens, width d and inner width m: text
    tokens, scoring and the attention between text and image are left out. To compare with printed
    figures; what a prefill really costs is `prefill_macs`.

    Args:
        hidden: Width d of the language model.
        intermediate: Inner width m of its gated MLP.
        layers: Decoder layers.
        image_tokens: Image tokens of the prompt before pruning.
        prune_after: Layers behind which tokens go, counted from 1, ascending.
        keep: For each of them the share of the original image tokens that stays, in (0, 1]; the
            number is rounded down.

    Raises:
        PlanError: The two lists do not fit each other or the model.

    Source: TransPrune (arXiv 2507.20630), equation 7 without the terms that its figures leave out;
    reproduces FastV's, PyramidDrop's and its own tables.
    """
    return sum(
        count * (4 * n * hidden**2 + 2 * n**2 * hidden + 3 * n * hidden * intermediate)
        for count, n in _stretches(layers, image_tokens, prune_after, keep)
    )


def prefill_macs(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    image_tokens: int,
    text_tokens: int,
    rows: int,
    kv_hidden: int | None = None,
    vocabulary: int = 0,
    prune_after: Sequence[int] = (),
    keep: Sequence[float] = (),
) -> int:
    """MACs of a whole prefill, scoring and the logits of the last token included.

    Attention counts every pair of query and key, also those that the causal mask hides, as fused
    kernels are commonly counted. Each pruning costs the queries of the text rows, their products
    with the keys of all tokens, and the keys of those that go: the others' are not made again.

    Args:
        hidden: Width of the language model.
        intermediate: Inner width of its gated MLP.
        layers: Decoder layers.
        image_tokens: Image tokens before pruning.
        text_tokens: All others, before and after the image; they stay.
        rows: Text tokens whose attention scores the image tokens, 0 where a method asks none.
        kv_hidden: Width of keys and values, smaller than `hidden` where heads share them; None
            for the same.
        vocabulary: Rows of the output layer, 0 leaves it out.
        prune_after: Layers behind which tokens go, counted from 1, ascending.
        keep: Share of the original image tokens that stays behind each, rounded down.

    Raises:
        PlanError: The two lists do not fit each other or the model.
    """
    kv = hidden if kv_hidden is None else kv_hidden
    total, before = hidden * vocabulary, image_tokens
    for count, n in _stretches(layers, image_tokens, prune_after, keep):
        tokens = n + text_tokens
        if n != before and rows:
            scored = before + text_tokens
            total += rows * hidden**2 + (before - n) * hidden * kv + rows * scored * hidden
        projections = 2 * tokens * hidden**2 + 2 * tokens * hidden * kv
        attention = 2 * tokens**2 * hidden
        total += count * (projections + attention + 3 * tokens * hidden * intermediate)
        before = n
    return total


def kept_counts(image_tokens: int, keep: Sequence[float]) -> tuple[int, ...]:
    """Image tokens that stay at each stage: the share of the original number, rounded down."""
    # 0.29 * 100 is 28.999999999999996: a share meant to give a whole number gives it.
    return tuple(max(1, int(image_tokens * share + 1e-9)) for share in keep)


def _stretches(
    layers: int, image_tokens: int, prune_after: Sequence[int], keep: Sequence[float]
) -> list[tuple[int, int]]:
    """(layers, image tokens in them) of each stretch between two prunings."""
    if len(prune_after) != len(keep):
        raise PlanError(
            "each pruning layer needs a share to keep",
            found=f"{len(prune_after)} layers, {len(keep)} shares",
            fix="prune_after=(7, 9, 12), keep=(0.875, 0.625, 0.125)",
        )
    edges = [0, *prune_after, layers]
    if any(a >= b for a, b in itertools.pairwise(edges)):
        raise PlanError(
            "pruning layers must ascend and lie inside the model",
            found=f"{tuple(prune_after)} of {layers} layers",
            fix=f"layers 1 to {layers - 1}",
        )
    shares = (1.0, *keep)
    if any(not 0 < b <= a for a, b in itertools.pairwise(shares)):
        raise PlanError(
            "each stage keeps a share of the original image tokens, no more than the one before",
            found=str(tuple(keep)),
            fix="keep=(0.875, 0.625, 0.125)",
        )
    counts = (image_tokens, *kept_counts(image_tokens, keep))
    return [(b - a, n) for a, b, n in zip(edges, edges[1:], counts, strict=False)]
