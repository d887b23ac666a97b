"""The report as HTML: what it tells, what it leaves out, and that it harms nobody."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prunepass.html.facts import Facts, Picture, Quality
from prunepass.html.headline import amount
from prunepass.html.page import page
from tests.html.browser import browser, missing

EVIL = '<script>alert("1")</script>'
REPORT: dict[str, Any] = {
    "model": f"own.py:{EVIL}", "weights": "random", "backend": "onnx", "batch": None,
    "macs_dense": 2_000_000_000, "macs": 1_100_000_000, "macs_ratio": 0.55,
    "difference": 2e-6, "difference_dense": 1e-7, "seconds": {"capture": 1.2},
    "tokens": {"block[0].attention": [197, 100], "block[1].attention": [100, 1]},
    "environment": {"processor": EVIL, "threads": 2, "torch": "2.15.0"},
}  # fmt: skip
STEP = {"kind": "reduce_tokens", "site": "block[0].attention", "rule": "tome", "keep": 100,
        "action": "merge", "options": {}}  # fmt: skip
PLAN: dict[str, Any] = {"method": "tome", "notes": {"flops": 0.55}, "steps": [STEP]}
LEAST = Facts(report=REPORT, plan=PLAN)
SECTIONS = ("tokens", "macs", "latency", "quality", "pictures", "layers", "front", "doctor",
            "plan", "versions")  # fmt: skip
JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffd9")


def whole() -> Facts:
    rows = {"macs_ratio": 0.55, "kl_error": 0.01}
    front = [[0.5, 0.5, 0.2, 0.9, "tome"], [0.6, 0.6, 0.1, 0.95, EVIL]]
    return replace(
        LEAST,
        plan={**PLAN, "notes": {"front": front, "why": [EVIL], "target": "flops<=0.6"}},
        parts={"block 0 attention": (300, 200), "block 0 MLP": (700, 350)},
        runs={"dense": [10.0, 12.0, 11.0, 10.5], "compressed": [6.0, 5.5, 6.5, 6.0]},
        bench={"batches": [{"batch": 8, "dense_ms": 80, "compressed_ms": 50, "speedup": 1.6}]},
        quality=(
            Quality(name="tome", agreement=0.95, kl=0.1, top1=0.8, own=True, **rows),
            Quality(name="random", agreement=0.9, kl=0.3, **rows),
        ),
        quality_note=f"200 pictures of {EVIL}",
        missing=(f"No downsample: {EVIL}",),
        pictures=(Picture(f"{EVIL}.png", (("as it came", "a picture", JPEG),)),),
        scores={"bi": ({"block[0]": 1.0, "block[1]": 3.0}, True)},
        findings=[{"target": "x", "effect": "slow", "node": "n", "what": EVIL, "mend": "opset 20"}],
    )


class Reader(HTMLParser):
    """Elements that open and close, headings, and what asks for something elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.asks: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag not in ("meta", "link", "img", "wbr"):
            self.open.append(tag)
        if tag == "h2":
            self.ids.append(told.get("id") or "")
        if tag == "img":
            self.images.append(told)
        for name in ("src", "href", "data", "action"):
            if told.get(name) and not str(told[name]).startswith("data:"):
                self.asks.append(f"{tag} {told[name]}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(facts: Facts) -> tuple[str, Reader]:
    text, reader = page(facts), Reader()
    reader.feed(text)
    assert reader.open == []
    return text, reader


def test_sections_are_there_when_their_facts_are() -> None:
    assert read(LEAST)[1].ids == ["tokens", "plan", "versions"]
    assert read(whole())[1].ids == list(SECTIONS)


@pytest.mark.parametrize("facts", [LEAST, whole()], ids=["least", "whole"])
def test_nothing_is_asked_for_and_nothing_runs(facts: Facts) -> None:
    text, reader = read(facts)
    assert reader.asks == []
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "default-src &#39;none&#39;" in text
    assert all(image["alt"] for image in reader.images)
    assert page(facts) == text


def test_the_headline_says_what_is_not_known() -> None:
    text, _ = read(LEAST)
    for part in ("not timed", "not measured", "55.0%", "The weights are random", "2 threads"):
        assert part in text
    text, _ = read(whole())
    for part in ("1.72x", "95.0%", "Better than random tokens", "200 pictures of", "197 → 100"):
        assert part in text


def test_what_does_not_beat_random_is_told() -> None:
    own, chance = whole().quality
    text, _ = read(replace(whole(), quality=(replace(own, kl=0.29), chance)))
    assert "Not clearly better than random tokens" in text


def test_of_a_vision_language_model_a_prompt_is_told() -> None:
    report = {k: v for k, v in REPORT.items() if k != "difference_dense"}
    engines = [
        {"name": "dense", "median_ms": 90.0},
        {"name": "half", "median_ms": 60.0, "macs_ratio": 0.715, "speedup": 1.5, "speedup_low": 1.4,
         "speedup_high": 1.6},
        {"name": "third", "median_ms": 45.0, "speedup": 2.0},
    ]  # fmt: skip
    facts = replace(
        LEAST,
        report={**report, "example": "a prompt", "macs_dense": 4_000_000, "macs": 1_230_000},
        plan={**PLAN, "notes": {"cache": 0.5, "decode_keep": 0.4, "dropped": ["block[3]"]},
              "steps": [STEP | {"kind": "prune_image_tokens", "keep": 0.25}]},
        bench={"batches": [{"batch": 2, "engines": engines}]},
    )  # fmt: skip
    text, _ = read(facts)
    for part in (
        "4.00 M to 1.23 M a prompt", "50.0% of the dense one", "differs by 2.0e-06<",
        "image tokens that stay: 0.25", "decoding reads 40%", "without block[3]", "1.50x",
        "90.0 to 60.0 ms, batch 2", "1.50x (1.40 to 1.60)", ">0.715<", ">2.00x<",
        "prunepass generate",
    ):  # fmt: skip
        assert part in text
    text, _ = read(replace(facts, bench={}, runs={"compressed": [70.0, 72.0, 71.0]}))
    assert "71 ms" in text
    assert "to the first token" in text


@pytest.mark.parametrize(
    ("macs", "text"),
    [(0, "0.00"), (999, "999"), (1234, "1.23 k"), (56_789, "56.8 k"), (4.6e9, "4.60 G"),
     (4.567e12, "4567 G")],
)  # fmt: skip
def test_amounts_have_three_digits(macs: float, text: str) -> None:
    assert amount(macs) == text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_in_a_browser(tmp_path: Path, scheme: str, width: int) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    file = tmp_path / "report.html"
    file.write_text(page(whole()), encoding="utf-8")
    told: list[str] = []
    asked: list[str] = []
    with browser() as opened:
        size = {"width": width, "height": 800}
        tab = opened.new_context(viewport=size, color_scheme=scheme).new_page()
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        assert told == []
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
        # Nothing hangs over the edge, and what is read can be told from what it stands on.
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        colours = tab.evaluate(
            "['body', '.note', 'caption', 'summary'].map(name => [getComputedStyle("
            "document.querySelector(name)).color, getComputedStyle(document.body).backgroundColor])"
        )
    for ink, paper in colours:
        assert contrast(ink, paper) >= 4.5, (ink, paper)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours `rgb(r, g, b)`, 1..21. Source: WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        parts = [float(v) / 255 for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        red, green, blue = (
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
