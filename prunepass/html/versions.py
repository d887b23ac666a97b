"""On what all of it was taken."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.facts import Facts
from prunepass.html.markup import section, table


def versions(facts: Facts) -> Markup:
    """Machine and versions, and how long each stage of compiling took."""
    environment = [(k, str(v)) for k, v in facts.report.get("environment", {}).items()]
    seconds = [(k, f"{v:.1f} s") for k, v in facts.report.get("seconds", {}).items()]
    return section(
        "versions", "Machine and versions",
        table(("what", "which"), environment, caption="Where it was compiled"),
        table(("stage", "took"), seconds, caption="How long compiling took", numbers=(1,)),
    )  # fmt: skip
