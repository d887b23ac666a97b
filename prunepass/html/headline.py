"""What was asked, what came of it, on which machine."""

from __future__ import annotations

import math
import statistics
from typing import Any

from markupsafe import Markup

from prunepass.html.facts import Facts, compared
from prunepass.html.markup import tag

_OF_IMAGES = ("prune_image_tokens", "select_image_features")


def headline(facts: Facts) -> Markup:
    """The head of the report."""
    report = facts.report
    before, now = (amount(report[name]) for name in ("macs_dense", "macs"))
    cells = [
        _cell(f"{facts.ratio:.1%}", "of the multiply-accumulates",
              f"{before} to {now} {report.get('example', 'a picture')}"),
        *_speed(facts),
        *_quality(facts),
    ]  # fmt: skip
    cache = facts.plan.get("notes", {}).get("cache")
    facts_of = [
        ("Asked", asked(facts.plan)),
        *([] if cache is None else [("Cache of image tokens", f"{cache:.1%} of the dense one")]),
        ("Engine", f"{report['backend']}, batch {report.get('batch') or 'any'}, "
                   f"weights {report['weights']}"),
        ("Engine against its program", _differs(report)),
        ("Machine", machine(report.get("environment", {}))),
    ]  # fmt: skip
    notes = []
    if report["weights"] == "random":
        notes.append("The weights are random: speed and structure only, nothing about quality.")
    notes += _rows(facts.plan)
    notes.append("Fewer multiply-accumulates are a saving in theory; time is what was measured.")
    return tag(
        "header",
        tag("p", "prunepass report", class_="kind"),
        tag("h1", report["model"]),
        tag("div", *cells, class_="cells"),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", text)) for name, text in facts_of)),
        *(tag("p", note, class_="note") for note in [*notes, *facts.missing]),
    )


def _rows(plan: Any) -> list[str]:
    """Up to how many tokens at once a plan lets layers read fewer inputs, if it does."""
    steps = [s for s in plan.get("steps", ()) if s["kind"] == "sparsify_inputs" and s["keep"] != 1]
    if not steps:
        return []
    bounds = sorted({s["options"].get("rows", 1) for s in steps})
    most = " to ".join(str(rows) for rows in dict.fromkeys((bounds[0], bounds[-1])))
    said = "Counted for a token that is decoded alone: layers read fewer inputs for at most"
    return [f"{said} {most} at once. More, as in a prompt or a larger batch, are dense."]


def amount(macs: float) -> str:
    """A number of multiply-accumulates with three digits."""
    power = min(3, int(math.log10(max(1.0, macs))) // 3)
    shown = macs / 1000**power
    digits = max(0, 2 - int(math.log10(max(1.0, shown))))
    return f"{shown:.{digits}f} {' kMG'[power]}".strip()


def _differs(report: Any) -> str:
    dense = report.get("difference_dense")
    beside = "" if dense is None else f" (dense {dense:.1e})"
    return f"differs by {report['difference']:.1e}{beside}"


def asked(plan: Any) -> str:
    """What a plan was asked for, as a person says it."""
    notes = plan.get("notes", {})
    said = [f"method {plan['method']}"]
    if "keep" in notes:
        said.append(f"{notes['keep']:.0%} of the inputs of linear layers")
    if "flops" in notes:
        said.append(f"{notes['flops']:.0%} of the multiply-accumulates")
    shares = [f"{s['keep']:g}" for s in plan.get("steps", ()) if s["kind"] in _OF_IMAGES]
    if shares:
        said.append(f"image tokens that stay: {', '.join(shares)}")
    if "decode_keep" in notes:
        said.append(f"decoding reads {notes['decode_keep']:.0%} of the inputs of its layers")
    if "target" in notes:
        said.append(f"target {notes['target']}")
    if "floor" in notes:
        said.append(f"floor {notes['floor']}")
    if "recipe" in notes:
        said.append(f"decided: {notes['recipe']}")
    if notes.get("dropped"):
        said.append(f"without {', '.join(notes['dropped'])}")
    return "; ".join(said)


def machine(environment: Any) -> str:
    """A machine in one line."""
    parts = [
        str(environment.get("processor", "unknown processor")),
        _threads(environment["threads"]) if environment.get("threads") else "",
        "" if environment.get("device") in (None, "cpu") else str(environment["device"]),
        f"torch {environment['torch']}" if "torch" in environment else "",
    ]
    return ", ".join(part for part in parts if part)


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _speed(facts: Facts) -> list[Markup]:
    if {"dense", "compressed"} <= set(facts.runs):
        pairs = zip(facts.runs["dense"], facts.runs["compressed"], strict=True)
        gain = statistics.median(a / b for a, b in pairs)
        dense, now = (statistics.median(facts.runs[n]) for n in ("dense", "compressed"))
        return [_cell(f"{gain:.2f}x", "as fast, measured", f"{dense:.1f} to {now:.1f} ms, batch 1")]
    if len(facts.runs) == 1:
        (alone,) = facts.runs.values()
        more = "prunepass bench DENSE THIS --compare holds it against a bundle that prunes nothing"
        return [_cell(f"{statistics.median(alone):.0f} ms", "to the first token, measured", more)]
    rows = [row for row in compared(facts.bench) if row.speedup is not None]
    if rows:
        row = rows[0]
        said = f"{row.before_ms:.1f} to {row.now_ms:.1f} ms, batch {row.batch}"
        return [_cell(f"{row.speedup:.2f}x", "as fast, measured", said)]
    return [_cell("not timed", "speed", "prunepass report --runs 30 measures it")]


def _quality(facts: Facts) -> list[Markup]:
    own = next((row for row in facts.quality if row.own), None)
    if own is None and not facts.of_pictures:
        return [_cell("not measured", "quality", "prunepass generate asks it")]
    if own is None:
        return [_cell("not measured", "quality", "prunepass report --images DIR measures it")]
    return [_cell(f"{own.agreement:.1%}", "agree with the dense model",
                  f"KL {own.kl:.3f} +- {own.kl_error:.3f} nats")]  # fmt: skip


def _cell(number: str, what: str, more: str) -> Markup:
    return tag(
        "div",
        tag("strong", number),
        tag("span", what),
        tag("small", more),
        class_="cell",
    )
