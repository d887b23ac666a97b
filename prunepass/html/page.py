"""The page: all sections that have something to tell, in one file that asks for nothing else."""

from __future__ import annotations

from importlib.resources import files

from markupsafe import Markup

from prunepass.html.facts import Facts
from prunepass.html.findings import findings
from prunepass.html.front import front
from prunepass.html.headline import headline
from prunepass.html.latency import latency
from prunepass.html.layer_scores import layer_scores
from prunepass.html.macs import macs
from prunepass.html.markup import join, tag, void
from prunepass.html.pictures import pictures
from prunepass.html.plan import plan
from prunepass.html.quality import quality
from prunepass.html.tokens import tokens
from prunepass.html.versions import versions

SECTIONS = (
    tokens, macs, latency, quality, pictures, layer_scores, front, findings, plan, versions,
)  # fmt: skip
MOST_BYTES = 2_000_000
"""A report is smaller than this."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser that reads this loads nothing from anywhere, whatever the rest says."""


def page(facts: Facts) -> str:
    """The report as HTML text."""
    style = files("prunepass.html").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        void("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"{facts.report['model']}: prunepass report"),
        void("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )
    main = tag("main", headline(facts), *(made(facts) for made in SECTIONS))
    body = tag("body", main)
    return f"<!doctype html>\n{join([tag('html', head, body, lang='en')])}\n"
