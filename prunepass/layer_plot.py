"""Layer scores for people: a table with bars in a terminal, or a picture as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from prunepass.importance.scores import LayerScores
from prunepass.importance.table import LAYER_SCORES

_BAR = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def heights(values: Mapping[str, float], *, high_matters: bool) -> dict[str, float]:
    """Importance of each site in 0..1, 1 the most important, from the least to the most."""
    low, high = min(values.values()), max(values.values())
    span = (high - low) or 1.0
    up = {site: (value - low) / span for site, value in values.items()}
    return up if high_matters else {site: 1 - x for site, x in up.items()}


def bar(share: float) -> str:
    """A bar of at most twelve characters."""
    eighths = round(max(0.0, min(1.0, share)) * _BAR * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def rows(scores: LayerScores, *, branches: bool) -> list[list[str]]:
    """One row a site: its label, then for each score the value with a bar of its importance."""
    sites = [s for s in next(iter(scores.values.values())) if ("." in s) == branches]
    found = [[site] for site in sites]
    for name, values in scores.values.items():
        chosen = {site: values[site] for site in sites}
        up = heights(chosen, high_matters=LAYER_SCORES[name].high_matters)
        for row in found:
            row += [f"{values[row[0]]:.4g}", bar(up[row[0]])]
    return found


def svg(scores: LayerScores, *, branches: bool, title: str) -> str:
    """A picture with one panel a score: importance of each site as a bar, SVG text."""
    sites = [s for s in next(iter(scores.values.values())) if ("." in s) == branches]
    width, panel, step = 120 + 26 * len(sites), 130, 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{60 + panel * len(scores.values)}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, values) in enumerate(scores.values.items()):
        base = 40 + panel * (number + 1) - 30
        chosen = {site: values[site] for site in sites}
        up = heights(chosen, high_matters=LAYER_SCORES[name].high_matters)
        parts.append(f'<text x="10" y="{base - 40}">{escape(name)}</text>')
        for i, site in enumerate(sites):
            tall, x = 4 + 76 * up[site], 100 + step * i
            parts.append(
                f'<rect x="{x}" y="{base - tall:.1f}" width="18" height="{tall:.1f}" '
                f'fill="#3b6ea5"><title>{escape(site)} {values[site]:.5g}</title></rect>'
            )
            label = site.replace("block[", "").replace("]", "").replace(".attention", "a")
            parts.append(
                f'<text x="{x + 9}" y="{base + 13}" text-anchor="middle">'
                f"{escape(label.replace('.mlp', 'm'))}</text>"
            )
    return "\n".join([*parts, "</svg>", ""])
