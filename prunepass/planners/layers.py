"""Which layers go: so many of them by a score, or those that are named."""

from __future__ import annotations

from collections.abc import Sequence

from prunepass.errors import PlanError
from prunepass.plans import Step

PROTECTED = (1, 1)
"""First and last blocks that no count takes; a name does."""


def lowest(order: Sequence[str], count: int, *, blocks: int) -> tuple[Step, ...]:
    """Steps that drop the `count` least important layers, first and last blocks left alone.

    Args:
        order: Sites from the least to the most important, `block[3]` or `block[3].mlp`.
        count: How many go, >= 1.
        blocks: How many blocks there are.

    Raises:
        PlanError: There are not so many that may go.
    """
    first, last = PROTECTED
    free = [site for site in order if first <= number_of(site) < blocks - last]
    if not 1 <= count <= len(free):
        raise PlanError(
            f"cannot drop {count} layers",
            found=f"{len(free)} may go; the first and the last block are left alone",
            fix=f"1 to {len(free)}, or name them: --drop-layers 'block[0],block[2].mlp'",
        )
    return tuple(
        Step(kind="drop_layers", site=site) for site in sorted(free[:count], key=number_of)
    )


def named(sites: Sequence[str]) -> tuple[Step, ...]:
    """Steps that drop the layers of these names."""
    return tuple(Step(kind="drop_layers", site=site) for site in sites)


def number_of(site: str) -> int:
    """Number of the block of a site."""
    return int(site[len("block[") : site.index("]")])


def wanted(text: str) -> int | tuple[str, ...]:
    """`3` as a count, `block[1],block[4].mlp` as names.

    Raises:
        PlanError: It is neither.
    """
    if text.isdecimal():
        return int(text)
    sites = tuple(part.strip() for part in text.split(","))
    if all(site.startswith("block[") and "]" in site for site in sites):
        return sites
    raise PlanError(
        f"--drop-layers {text!r} names no layers",
        found=text,
        fix="--drop-layers 3, or --drop-layers 'block[1],block[4].mlp'",
    )
