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
    parser.add_argument("--json", action="store_true", help="print one JSON object")


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
    for m in METHODS.values():
        star = " (default)" if m.name == DEFAULT else ""
        say(f"{m.name:<20} {m.summary}{star}")
        say(f"{'':<20} {m.action}s tokens by rule {m.rule}; {m.source}")
    say(f"{DOWNSAMPLE:<20} the model at a smaller picture, a baseline; needs a model that can be")
    say(f"{'':<20} built at another input size")
    say("")
    say("of vision-language models:")
    for v in IMAGE_METHODS.values():
        star = " (default)" if v.name == "transprune" else ""
        say(f"{v.name:<20} {v.summary}{star}")
        say(f"{'':<20} {v.source}")
    say("")
    say("of language models:")
    for i in INPUT_METHODS.values():
        star = " (default)" if i.name == "wina" else ""
        say(f"{i.name:<20} {i.summary}{star}")
        say(f"{'':<20} {i.source}")
    return data
