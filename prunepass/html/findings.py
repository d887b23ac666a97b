"""What the doctor found."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.facts import Facts
from prunepass.html.markup import section, table, tag

_COLUMNS = ("effect", "where", "what", "mend")


def findings(facts: Facts) -> Markup | None:
    """Traps of the target in this engine."""
    if facts.findings is None:
        return None
    if not facts.findings:
        return section("doctor", "Doctor", tag("p", "Nothing was found."))
    rows = [
        tuple(
            str(found.get(key, found.get(other, "")))
            for key, other in (
                ("effect", "kind"),
                ("where", "node"),
                ("what", "found"),
                ("mend", "fix"),
            )
        )
        for found in facts.findings
    ]
    return section(
        "doctor", "Doctor", table(_COLUMNS, rows, caption=f"{len(rows)} findings of the doctor")
    )
