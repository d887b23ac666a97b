"""`prunepass profile`: where the time of a bundle's engines goes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunepass.benchmark.profiling import Profile, profiles
from prunepass.benchmark.subjects import COMPRESSED, DENSE
from prunepass.commands.request import Say
from prunepass.errors import UsageError
from prunepass.graph.parts import GROUPS
from prunepass.measure.environment import environment

_OPERATORS = 8


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="examples of a run (1)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: the library's)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="runs of each (20)")
    parser.add_argument("--by", choices=("group", "site", "operator"), default="site")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Tells where the time goes, dense beside compressed."""
    if min(words.batch, words.runs, words.threads or 1) < 1:
        raise UsageError(
            "profile needs a batch, runs and threads of at least 1",
            found=f"--batch {words.batch} --runs {words.runs} --threads {words.threads}",
            fix="--batch 1 --runs 20",
        )
    found = profiles(words.bundle, batch=words.batch, threads=words.threads, runs=words.runs)
    dense, compressed = found[DENSE], found[COMPRESSED]
    say(
        f"{words.bundle}: batch {words.batch}, {1e3 * dense.seconds:.2f} ms in the nodes of the "
        f"dense engine, {1e3 * compressed.seconds:.2f} ms in those of the compressed one"
    )
    if words.by == "site":
        _show_sites(dense, compressed, say=say)
    if words.by == "operator":
        _show("operator", dense.operators, compressed.operators, say, _OPERATORS)
    _show("group", _in_order(dense.groups), _in_order(compressed.groups), say)
    say("profiling slows nodes down, small ones most: `prunepass bench` tells the time of a run")
    return {
        "bundle": str(words.bundle), "batch": words.batch, "runs": words.runs,
        **{part: profile.to_dict() for part, profile in found.items()},
        "environment": environment(threads=words.threads),
    }  # fmt: skip


def _in_order(groups: Mapping[str, float]) -> dict[str, float]:
    return {name: groups[name] for name in GROUPS if name in groups}


def _show_sites(dense: Profile, compressed: Profile, *, say: Say) -> None:
    """A line a site: dense, compressed, and of that what choosing and moving tokens takes."""
    before, after = dense.sites, compressed.sites
    parts = compressed.parts()
    rows = [
        [
            site, _ms(before.get(site)), _ms(after.get(site)),
            _ms(parts.get(site, {}).get("scoring")), _ms(parts.get(site, {}).get("gather")),
        ]
        for site in _merged(before, after)
    ]  # fmt: skip
    say.table(("site", "dense", "compressed", "scoring", "gather"), rows)


def _show(
    what: str, before: Mapping[str, float], after: Mapping[str, float], say: Say,
    most: int | None = None,
) -> None:  # fmt: skip
    whole = (sum(before.values()) or 1.0, sum(after.values()) or 1.0)
    rows = [
        [
            name, _ms(before.get(name)), f"{before.get(name, 0) / whole[0]:.1%}",
            _ms(after.get(name)), f"{after.get(name, 0) / whole[1]:.1%}",
        ]
        for name in _merged(before, after)[:most]
    ]  # fmt: skip
    say.table((what, "dense", "of it", "compressed", "of it"), rows)


def _merged(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    return list(dict.fromkeys([*before, *after]))


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f} ms"
