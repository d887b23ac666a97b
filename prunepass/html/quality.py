"""What was given for what: beside random tokens, a smaller picture and merging at equal cost."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.facts import Facts, Quality
from prunepass.html.markup import section, table, tag

_COLUMNS = ("done", "MACs", "agreement", "KL to dense, nats", "top-1")


def quality(facts: Facts) -> Markup | None:
    """The bundle beside the baselines."""
    if not facts.quality:
        return None
    rows = [
        (
            tag("strong", f"{row.name}, this bundle") if row.own else row.name,
            f"{row.macs_ratio:.3f}",
            f"{row.agreement:.1%}",
            f"{row.kl:.3f} \u00b1 {row.kl_error:.3f}",
            "" if row.top1 is None else f"{row.top1:.1%}",
        )
        for row in sorted(facts.quality, key=lambda r: r.kl)
    ]
    return section(
        "quality", "Quality at equal cost",
        tag("p", facts.quality_note, class_="note"),
        table(_COLUMNS, rows, caption="Nearest to the dense model first", numbers=(1, 2, 3, 4)),
        tag("p", _verdict(facts.quality), class_="note"),
    )  # fmt: skip


def _verdict(rows: tuple[Quality, ...]) -> str:
    """Whether the bundle beats random tokens by more than the noise."""
    own = next((row for row in rows if row.own), None)
    chance = next((row for row in rows if row.name == "random"), None)
    if own is None or chance is None:
        return "Random tokens were not measured beside it."
    noise = 2 * (own.kl_error**2 + chance.kl_error**2) ** 0.5
    if own.kl < chance.kl - noise:
        return "Better than random tokens by more than the noise."
    return "Not clearly better than random tokens at this cost."
