"""Curves as an SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from virnucpro_core.lab.metrics import Float64Array

SIDE, LEFT, TOP = 420, 64, 44
MOST = 400
"""Points of a line, at most: evenly taken, so that a picture stays small."""
COLOURS = ("#1b6ca8", "#c4552d", "#2a7f62", "#7a4e9c", "#a8841b", "#555555")


def plot(
    title: str,
    axes: tuple[str, str],
    lines: Mapping[str, Float64Array],
    level: tuple[float, float],
) -> str:
    """Lines of points (N, 2) in the unit square, by name, beside a dashed one of chance or truth.

    level: where the dashed one begins and ends, on the left and on the right. Points (N, 3) are
    marked by dots, whose area is the third value's.
    """

    def pixels(points: Float64Array) -> Float64Array:
        at: Float64Array = np.round(points[:, :2] * (SIDE, -SIDE) + (LEFT, TOP + SIDE), 1)
        few = np.unique(np.linspace(0, len(at) - 1, min(len(at), MOST)).astype(int))
        taken: Float64Array = at[few]
        return taken

    def line(points: Float64Array, style: str) -> str:
        path = " ".join(f"{x:g},{y:g}" for x, y in points.tolist())
        return f'<polyline points="{path}" fill="none" {style}/>'

    body = [f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" class="axis"/>']
    for tick in np.arange(0, 1.01, 0.2):
        x, y = LEFT + tick * SIDE, TOP + SIDE - tick * SIDE
        body.append(
            f'<path d="M{x:.1f} {TOP}v{SIDE}M{LEFT} {y:.1f}h{SIDE}" stroke="#e4e4e4"/>'
            f'<text x="{x:.1f}" y="{TOP + SIDE + 18}" text-anchor="middle">{tick:.1f}</text>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>'
        )
    dashed = pixels(np.array([[0, level[0]], [1, level[1]]]))
    body.append(line(dashed, 'stroke="#888" stroke-dasharray="5 4"'))
    for n, (name, points) in enumerate(lines.items()):
        colour, at = COLOURS[n % len(COLOURS)], pixels(points)
        dash = ' stroke-dasharray="2 2"' if n >= len(COLOURS) else ""
        body.append(line(at, f'stroke="{colour}" stroke-width="1.8"{dash}'))
        for x, y, size in points.tolist() if points.shape[1] == 3 else ():
            at = pixels(np.array([[x, y]]))[0]
            radius = 1.5 + 10 * size**0.5
            body.append(
                f'<circle cx="{at[0]:g}" cy="{at[1]:g}" r="{radius:.1f}" fill="{colour}" '
                'fill-opacity="0.5"/>'
            )
        y = TOP + 12 + 20 * n
        body.append(
            f'<path d="M{LEFT + SIDE + 20} {y}h24" stroke="{colour}" stroke-width="3"{dash}/>'
            f'<text x="{LEFT + SIDE + 52}" y="{y + 4}">{escape(name)}</text>'
        )
    middle = TOP + SIDE / 2
    width = LEFT + SIDE + 72 + 7 * max([0, *map(len, lines)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + SIDE + 56}" '
        f'font-family="sans-serif" font-size="12"><style>.axis{{fill:none;stroke:#444}}</style>'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="26" font-size="14" font-weight="bold">{escape(title)}</text>'
        f"{''.join(body)}"
        f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 42}" text-anchor="middle">'
        f"{escape(axes[0])}</text>"
        f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes[1])}</text></svg>\n"
    )
