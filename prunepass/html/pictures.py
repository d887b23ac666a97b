"""Pictures with the patches that stay, or are merged."""

from __future__ import annotations

import base64

from markupsafe import Markup

from prunepass.html.facts import Facts
from prunepass.html.markup import section, tag, void


def pictures(facts: Facts) -> Markup | None:
    """What became of the patches of some pictures."""
    if not facts.pictures:
        return None
    shown = []
    for picture in facts.pictures:
        panels = [
            tag(
                "figure",
                void("img", src=_data(image), alt=f"{picture.name}: {said}", loading="lazy"),
                tag("figcaption", title),
            )
            for title, said, image in picture.panels
        ]
        shown += [tag("h3", picture.name), tag("div", *panels, class_="panels")]
    note = "Faded patches are gone; patches of one colour with an outline are one token."
    return section("pictures", "What the engine looks at", tag("p", note, class_="note"), *shown)


def _data(image: bytes) -> Markup:
    return Markup("data:image/jpeg;base64,") + base64.b64encode(image).decode()
