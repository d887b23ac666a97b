"""`prunepass inspect`: what can be reduced in a model, and where."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from prunepass.analyse.flops import macs
from prunepass.analyse.sites import sites as find_sites
from prunepass.capturing import capture
from prunepass.commands.request import Say, load
from prunepass.commands.words import model_arguments

_COLUMNS = ("site", "module", "tokens", "channels", "heads", "tokens can be reduced")


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    model_arguments(parser)


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Lists the sites of a model."""
    loaded = load(words)
    program = capture(loaded.module, (loaded.example(),))
    sites = find_sites(program)
    say(
        f"{words.model}: {macs(program) / 1e9:.3f} GMAC an example, "
        f"{sum(p.numel() for p in program.parameters()) / 1e6:.1f} M parameters, "
        f"{len(sites)} sites, {sites.prefix_tokens} prefix tokens"
        + (f", {len(sites.fixed_tokens)} more that always stay" if sites.fixed_tokens else "")
    )
    if not len(sites):
        say(
            "  no attention block with a residual stream was recognised, so no token can go.\n"
            "  The model still compiles as it is: prunepass.build(prunepass.capture(...))"
        )
    if words.json:
        return {
            "model": words.model,
            "macs": macs(program),
            "prefix_tokens": sites.prefix_tokens,
            "fixed_tokens": list(sites.fixed_tokens),
            "fingerprint": sites.fingerprint,
            "sites": [asdict(site) for site in sites],
        }
    rows, last = [], ""
    for site in sites:
        verdict = "yes" if site.refusal is None else f"no: {site.refusal}"
        shown = "no: as above" if verdict == last and verdict != "yes" else verdict
        last = verdict
        heads = "" if site.heads is None else str(site.heads)
        rows.append([site.label, site.module, str(site.tokens), str(site.channels), heads, shown])
    if rows:
        say.table(_COLUMNS, rows)
    return {}
