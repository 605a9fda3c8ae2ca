"""Figures against their bars, as an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from virnucpro_core.lab.benchmark.lines import Line

ROW, LEFT, WIDTH, RIGHT = 24, 420, 360, 150


def plot(lines: Sequence[Line], about: Mapping[str, str]) -> str:
    """A row for each line that has a bar: its value as a share of the bar, and a mark there."""
    shown = [line for line in lines if line.bar]
    height = ROW * (len(shown) + 3)
    longest = max([1.5, *(line.value / line.bar for line in shown if line.bar)])
    unit = WIDTH / longest
    rows = []
    for n, line in enumerate(shown):
        y = ROW * (n + 2)
        assert line.bar
        colour = "#2a7f62" if line.verdict == "pass" else "#b8423b"
        sign = "at most" if line.at_most else "at least"
        rows.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(line.name)}</text>'
            f'<rect x="{LEFT}" y="{y + 4}" width="{unit * line.value / line.bar:.1f}" '
            f'height="{ROW - 8}" fill="{colour}"/>'
            f'<text x="{LEFT + WIDTH + 8}" y="{y + 15}">{line.value:.3g} {escape(line.unit)} '
            f"({sign} {line.bar:g})</text>"
        )
    title = escape(f"{about.get('device', '')}, torch {about.get('torch', '')}")
    mark = LEFT + unit
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" '
        f'height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="12" y="20" font-weight="bold">{title}</text>{"".join(rows)}'
        f'<line x1="{mark}" x2="{mark}" y1="{ROW * 2}" y2="{height - ROW}" stroke="black" '
        f'stroke-dasharray="4 3"/><text x="{mark}" y="{height - 6}" text-anchor="middle">bar</text>'
        "</svg>\n"
    )
