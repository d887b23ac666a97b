"""Charts: bars as tables that a screen reader reads, points and distributions as inline SVG."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from prunepass.html.markup import join, tag

_WIDE, _HIGH = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 34


def bars(rows: Sequence[tuple[str, float, float | None, str]], *, caption: str) -> Markup:
    """Rows of (name, share, share before or None, what is said), shares in 0..1."""
    body = []
    for name, share, before, said in rows:
        inside = [] if before is None else [_bar("before", before)]
        track = tag("td", tag("div", *inside, _bar("now", share), class_="track"), class_="bar")
        body.append(
            tag("tr", tag("th", breakable(name), scope="row"), track, tag("td", said, class_="n"))
        )
    return tag("table", tag("caption", caption), tag("tbody", *body), class_="bars")


def breakable(name: str) -> Markup:
    """A label such as `block[3].attention` that a narrow screen breaks in front of its point."""
    return join(name.split("."), "<wbr>.")


def _bar(kind: str, share: float) -> Markup:
    return tag("span", class_=kind, style=f"width:{100 * max(0.0, min(1.0, share)):.1f}%")


def distribution(series: Mapping[str, Sequence[float]], *, unit: str, title: str) -> Markup:
    """Each value as a dot in a row a series, with its quartiles and median."""
    every = [value for values in series.values() for value in values]
    low, high = _limits(every)
    parts = _frame(low, high, unit)
    rows = len(series)
    step = (_HIGH - _TOP - _BOTTOM) / rows
    for number, (name, values) in enumerate(series.items()):
        middle = _TOP + step * (number + 0.62)
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        colour = ("before", "now")[number % 2] if rows > 1 else "now"
        parts.append(tag("text", f"{name}, median {median:.1f} {unit}", x=_LEFT, y=middle - 14))
        x1, x3 = _x(first, low, high), _x(third, low, high)
        parts.append(tag("rect", x=f"{x1:.1f}", y=middle - 7, width=f"{max(1.0, x3 - x1):.1f}",
                         height=14, rx=3, class_=f"{colour} half"))  # fmt: skip
        for i, value in enumerate(values):
            dot = middle + (i * 7 % 11 - 5) * 0.9  # apart from each other, the same at every run
            parts.append(
                tag("circle", cx=f"{_x(value, low, high):.1f}", cy=f"{dot:.1f}", r=2, class_=colour)
            )
        place = f"{_x(median, low, high):.1f}"
        parts.append(tag("line", x1=place, x2=place, y1=middle - 9, y2=middle + 9, class_="mark"))
    return _svg(parts, title)


def points(
    found: Sequence[tuple[float, float, str]], *, across: str, up: str, title: str
) -> Markup:
    """Points (x, y, name) joined by a line, with both axes."""
    low, high = _limits([x for x, _, _ in found])
    bottom, top = _limits([y for _, y, _ in found])
    parts = _frame(low, high, across)
    places = [(_x(x, low, high), _y(y, bottom, top), name) for x, y, name in found]
    parts.append(tag("text", up, x=4, y=10))
    for value in (bottom, (bottom + top) / 2, top):
        y = _y(value, bottom, top)
        parts.append(tag("text", f"{value:.3g}", x=_LEFT - 6, y=y + 4, text_anchor="end"))
        parts.append(tag("line", x1=_LEFT, x2=_WIDE - _RIGHT, y1=y, y2=y, class_="rule"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    parts.append(tag("polyline", points=line, class_="line"))
    for x, y, name in places:
        dot = tag("circle", tag("title", name), cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="now")
        parts.append(dot)
    return _svg(parts, title)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (value - low) / (high - low) * (_WIDE - _LEFT - _RIGHT)


def _y(value: float, bottom: float, top: float) -> float:
    return _HIGH - _BOTTOM - (value - bottom) / (top - bottom) * (_HIGH - _TOP - _BOTTOM)


def _frame(low: float, high: float, unit: str) -> list[Markup]:
    base = _HIGH - _BOTTOM
    parts = [tag("line", x1=_LEFT, x2=_WIDE - _RIGHT, y1=base, y2=base, class_="axis")]
    for i in range(5):
        value = low + (high - low) * i / 4
        x = f"{_x(value, low, high):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        parts.append(tag("text", f"{value:.3g}", x=x, y=base + 15, text_anchor="middle"))
    middle = (_LEFT + _WIDE - _RIGHT) / 2
    parts.append(tag("text", unit, x=middle, y=_HIGH - 4, text_anchor="middle"))
    return parts


def _svg(parts: Sequence[Markup], title: str) -> Markup:
    return tag("svg", tag("title", title), *parts, viewBox=f"0 0 {_WIDE} {_HIGH}", role="img",
               aria_label=title)  # fmt: skip
