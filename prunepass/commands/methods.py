"""`prunepass methods`: the methods and rules, with their sources."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from prunepass.commands.request import Say
from prunepass.planners.image_methods import IMAGE_METHODS
from prunepass.planners.input_methods import INPUT_METHODS
from prunepass.planners.methods import DEFAULT, DOWNSAMPLE, METHODS
from prunepass.rules.table import RULES


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Lists methods and rules."""
    data = {
        "methods": [
            {
                "name": m.name,
                "rule": m.rule,
                "action": m.action,
                "place": m.place,
                "needs": list(RULES[m.rule].needs),
                "summary": m.summary,
                "source": m.source,
            }
            for m in METHODS.values()
        ],
        "image_methods": [
            {
                "name": v.name,
                "rule": v.rule,
                "after": list(v.after),
                "keep": list(v.keep),
                "positions": v.positions,
                "summary": v.summary,
                "source": v.source,
            }
            for v in IMAGE_METHODS.values()
        ],
        "input_methods": [
            {
                "name": i.name,
                "rule": i.rule,
                "plain": i.plain,
                "roles": list(i.roles),
                "informed": list(i.informed),
                "summary": i.summary,
                "source": i.source,
            }
            for i in INPUT_METHODS.values()
        ],
        "rules": [
            {"name": r.name, "needs": list(r.needs), "options": dict(r.options), "source": r.source}
            for r in RULES.values()
        ],
    }
    if words.json:
        return data
    star = " (default)"
    rows = [
        [m.name, m.summary + star * (m.name == DEFAULT), f"{m.action}, {m.rule}", m.source]
        for m in METHODS.values()
    ]
    rows.append([DOWNSAMPLE, "the model at a smaller picture, a baseline", "", ""])
    say.table(("of pictures", "what it does", "action and rule", "source"), rows)
    say("")
    say.table(
        ("of pictures and text", "what it does", "source"),
        [[v.name, v.summary + star * (v.name == "transprune"), v.source]
         for v in IMAGE_METHODS.values()],
    )  # fmt: skip
    say("")
    say.table(
        ("of text alone", "what it does", "source"),
        [[i.name, i.summary + star * (i.name == "wina"), i.source] for i in INPUT_METHODS.values()],
    )
    return data
