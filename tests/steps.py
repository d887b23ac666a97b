"""Short ways to write plans in tests."""

from __future__ import annotations

from prunepass.plans import Step


def step(site: str, rule: str, keep: float, action: str = "drop", **options: object) -> Step:
    """One step; `keep` as in a plan: an int counts, a float is a fraction."""
    return Step(
        kind="reduce_tokens", site=site, rule=rule, keep=keep, action=action, options=options
    )


def by_site(steps: list[Step]) -> dict[str, Step]:
    """Site -> its step."""
    return {item.site: item for item in steps}
