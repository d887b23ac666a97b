"""HTML from values: everything is escaped but what is HTML already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape


def tag(name: str, /, *inside: object, **attributes: object) -> Markup:
    """An element; `class_` is `class`, and `_` in other names is `-`. None leaves one out."""
    told = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), told, join(inside))


def void(name: str, /, **attributes: object) -> Markup:
    """An element that has no inside."""
    return Markup(str(tag(name, **attributes)).removesuffix(f"</{name}>"))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after the other, text escaped."""
    return Markup(between).join(escape(part) for part in parts if part is not None)


def section(name: str, title: str, /, *inside: object) -> Markup:
    """A section with its heading."""
    return tag("section", tag("h2", title, id=name), *inside, aria_labelledby=name)


def table(
    columns: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    numbers: Sequence[int] = (),
) -> Markup:
    """A table whose first column names its rows; `numbers` are the columns that hold numbers."""

    def kind(i: int) -> str | None:
        return "n" if i in numbers else None

    head = tag("tr", *(tag("th", c, scope="col", class_=kind(i)) for i, c in enumerate(columns)))
    body = [
        tag(
            "tr",
            *(
                tag("td", c, class_=kind(i)) if i else tag("th", c, scope="row")
                for i, c in enumerate(row)
            ),
        )
        for row in rows
    ]
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    # Wider than a phone it scrolls by itself; what scrolls must be reachable by keyboard.
    return tag("div", made, class_="wide", tabindex="0", role="region", aria_label=caption)
