"""What the doctor found."""

from __future__ import annotations

from markupsafe import Markup

from prunepass.html.facts import Facts
from prunepass.html.markup import section, table, tag

_FIELDS = ("target", "effect", "node", "found", "what", "mend")
"""What of a finding is told; see `prunepass doctor --json`."""
_COLUMNS = ("target and effect", "where", "what", "mend")


def findings(facts: Facts) -> Markup | None:
    """Traps of the targets in this bundle, those that differ in their node alone as one."""
    if facts.findings is None:
        return None
    if not facts.findings:
        return section("doctor", "Doctor", tag("p", "Nothing was found."))
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in facts.findings:
        told = {name: str(one.get(name) or "") for name in _FIELDS}
        what = "; ".join(part for part in (told["found"], told["what"]) if part)
        key = (f"{told['target']} {told['effect']}".strip(), what, told["mend"])
        groups.setdefault(key, []).append(told["node"])
    rows = [
        (effect, nodes[0] + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""), what, mend)
        for (effect, what, mend), nodes in groups.items()
    ]
    caption = f"{len(facts.findings)} findings of prunepass doctor"
    return section("doctor", "Doctor", table(_COLUMNS, rows, caption=caption))
