"""The table of rules, and the one way to run any of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from prunepass.errors import PlanError, looked_up, nearest
from prunepass.rules.attention_weighted import attention_weighted
from prunepass.rules.cls_attention import cls_attention
from prunepass.rules.key_norm import key_norm
from prunepass.rules.page_rank import page_rank_score
from prunepass.rules.random import random
from prunepass.rules.received_attention import received_attention
from prunepass.rules.scan_output import scan_output
from prunepass.rules.select import keep_everything, select_by_score
from prunepass.rules.selection import Selection
from prunepass.rules.similar_hidden import similar_hidden
from prunepass.rules.similarity import head_rows
from prunepass.rules.tome import tome
from prunepass.rules.zero_tprune import zero_tprune

UNREAD = "unread"
"""The rule that keeps prefix tokens only, where nothing else is read: exact, and no scores."""

ROLES = ("attention", "query", "key", "value", "hidden", "size", "scan_output")

PLACE_OPTIONS = ("alignment", "convolution", "restore")
"""Options of every rule: what is done where tokens are missing, and where they come back."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of the table.

    Attributes:
        name: How plans call it.
        kind: "score": the function returns [B, T], larger is more worth keeping; "selection": it
            takes `keep` and `prefix` and returns a `Selection`.
        function: Takes each of `needs` by keyword.
        needs: Names out of `ROLES`.
        options: Name -> default, plain JSON values; passed by keyword.
        takes_prefix: A score function that wants to know `prefix`, too.
        source: Paper, venue, equation or section.
        summary: One line.
    """

    name: str
    kind: Literal["score", "selection"]
    function: Callable[..., Tensor | Selection]
    needs: tuple[str, ...]
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    takes_prefix: bool = False
    source: str
    summary: str


def prefix_only(hidden: Tensor, *, keep: int, prefix: int) -> Selection:
    """The selection of the first `keep` tokens of `hidden` [B, T, C]; the others have no target.

    Raises:
        ValueError: `keep` is not `prefix`, or there are no prefix tokens.
    """
    if not 0 < keep == prefix:
        raise ValueError(f"unread keeps exactly the prefix tokens: keep={keep}, prefix={prefix}")
    every = keep_everything(hidden).kept
    return Selection(every[:, :prefix], every[:, prefix:], every[:, prefix:] * 0)


_PAGE_RANK_OPTIONS: Mapping[str, object] = MappingProxyType(
    {
        "iterations": 5,
        "prefix_boost": True,
        "silence_prefix": False,
        "root_mean_square": True,
        "variance_range": [0.01, 0.7],
        "variance_scale": "mean1",
    }
)

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "page-rank": Rule(
            name="page-rank",
            kind="score",
            function=page_rank_score,
            needs=("attention",),
            options=_PAGE_RANK_OPTIONS,
            takes_prefix=True,
            source="Zero-TPrune, CVPR 2024, arXiv 2305.17328, I-stage (WPR, EIR, VHF)",
            summary="weighted PageRank on the attention graph",
        ),
        "received-attention": Rule(
            name="received-attention",
            kind="score",
            function=received_attention,
            needs=("attention",),
            source="common baseline",
            summary="mean attention a token receives",
        ),
        "cls-attention": Rule(
            name="cls-attention",
            kind="score",
            function=cls_attention,
            needs=("attention",),
            takes_prefix=True,
            source="EViT, ICLR 2022, arXiv 2202.07800, attentiveness",
            summary="attention the class token pays",
        ),
        "key-norm": Rule(
            name="key-norm",
            kind="score",
            function=key_norm,
            needs=("key",),
            options=MappingProxyType({"largest": False}),
            source="Devoto et al., EMNLP 2024, arXiv 2406.11430 (language models)",
            summary="short keys stay",
        ),
        "random": Rule(
            name="random",
            kind="score",
            function=random,
            needs=("hidden",),
            options=MappingProxyType({"seed": 0}),
            source="baseline of the token pruning papers",
            summary="the same random tokens in every image",
        ),
        "scan-output": Rule(
            name="scan-output",
            kind="score",
            function=scan_output,
            needs=("scan_output",),
            options=MappingProxyType({"clip": "positive"}),
            source="ToP-ViM, NeurIPS 2024, arXiv 2409.18962, token importance",
            summary="how much of a token comes out of the scans of its layer",
        ),
        "similar-hidden": Rule(
            name="similar-hidden",
            kind="score",
            function=similar_hidden,
            needs=("hidden",),
            source="Zero-TPrune, CVPR 2024, arXiv 2305.17328, S-stage without attention",
            summary="near-duplicates go first",
        ),
        "zero-tprune": Rule(
            name="zero-tprune",
            kind="selection",
            function=zero_tprune,
            needs=("attention", "key"),
            options=MappingProxyType(
                {
                    **_PAGE_RANK_OPTIONS,
                    "similar": None,
                    "partition": "seq-u",
                    "metric": "cosine",
                    "mean_heads": False,
                    "renormalise": True,
                    "order": "i'-s-i",
                    "seed": 0,
                }
            ),
            source="Zero-TPrune, CVPR 2024, arXiv 2305.17328, I'-S-I",
            summary="near-duplicates go first, then the least important by PageRank",
        ),
        "tome": Rule(
            name="tome",
            kind="selection",
            function=tome,
            needs=("key",),
            options=MappingProxyType({"heads": "mean"}),
            source="ToMe, ICLR 2023, arXiv 2210.09461, section 3",
            summary="pairs with the most alike keys merge",
        ),
        UNREAD: Rule(
            name=UNREAD,
            kind="selection",
            function=prefix_only,
            needs=("hidden",),
            source="dead code elimination along the token axis",
            summary="keeps prefix tokens only; exact where nothing else is read",
        ),
        "attention-weighted": Rule(
            name="attention-weighted",
            kind="selection",
            function=attention_weighted,
            needs=("key", "hidden", "attention"),
            options=MappingProxyType({"power": 0.5, "rounds": 1, "weigh": True}),
            source="this project; matching as in ToMe",
            summary="alike pairs merge, those little looked at first",
        ),
    }
)


def rule(name: str) -> Rule:
    """The row called `name`.

    Raises:
        PlanError: There is none; the known names are listed, nearest first.
    """
    return looked_up(RULES, name, "rule")


def check_options(row: Rule, options: Mapping[str, object]) -> None:
    """Nothing, if `row` knows every option.

    Raises:
        PlanError: It does not know one; the known options are listed, nearest first.
    """
    for option in options:
        if option not in row.options and option not in PLACE_OPTIONS:
            known = nearest(option, row.options)
            raise PlanError(
                f"rule {row.name!r} has no option {option!r}",
                found=f"{option}={options[option]!r}",
                fix=f"one of {known}" if known else f"{row.name!r} without options",
            )


def select(
    name: str, roles: Mapping[str, Tensor], *, keep: int, prefix: int, **options: object
) -> Selection:
    """The selection that the rule called `name` makes.

    Args:
        name: A key of `RULES`.
        roles: Role -> tensor: at least what the rule needs, and for a score rule "key" or "hidden"
            besides (they say which kept token a dropped one is most alike). attention [B, H, T, T],
            query, key and value [B, H, T, D], hidden [B, T, C], size [B, T], scan_output
            [B, T, C']. A score rule can be told, besides, of tokens behind the prefix that always
            stay: fixed [B, T] bool.
        keep: How many tokens stay, prefix tokens included; prefix < keep <= T.
        prefix: The first `prefix` tokens always stay.
        options: Override the row's defaults.

    Raises:
        PlanError: Unknown rule or option, or a role is missing.
        ValueError: `keep` or an option's value is out of range.
    """
    row = rule(name)
    check_options(row, options)
    missing = [role for role in row.needs if role not in roles]
    if row.kind == "score" and not {"key", "hidden"} & set(roles):
        missing.append("key or hidden")
    if missing:
        raise PlanError(
            f"rule {name!r} lacks {', '.join(missing)}",
            found=f"roles {', '.join(sorted(roles)) or 'none'}",
            fix=f"give it {', '.join(row.needs)}, or take a rule that needs less",
        )
    arguments: dict[str, object] = {role: roles[role] for role in row.needs}
    arguments.update(row.options)
    arguments.update({n: value for n, value in options.items() if n not in PLACE_OPTIONS})
    if row.kind == "selection":
        selection = row.function(**arguments, keep=keep, prefix=prefix)
        assert isinstance(selection, Selection)
        return selection
    if row.takes_prefix:
        arguments["prefix"] = prefix
    score = row.function(**arguments)
    assert isinstance(score, Tensor)
    features = head_rows(roles["key"], heads="concat") if "key" in roles else roles["hidden"]
    return select_by_score(score, features, keep=keep, prefix=prefix, fixed=roles.get("fixed"))
