"""The drawings of the alignment lab: four heat maps of one size, and the curve below the knots."""

from __future__ import annotations

import numpy as np

from .fragments import path, rect, svg, text

__all__ = ["CURVE_HEIGHT", "THUMB", "curve_svg", "map_svgs"]

SIZE, LEFT, TOP = 176, 22, 44
# The knots are sliders that stand upright over the curve; the page's style sheet gives them this height and thumb.
CURVE_HEIGHT, THUMB, COLUMN = 160, 18, 20


def map_svgs(x: str, y: str, content: np.ndarray, bias: np.ndarray, total: np.ndarray, weights: np.ndarray) -> str:
    """Content, bias, their sum and the weights. The first three share one scale, so that the eye can add."""
    top = max(float(np.abs(part).max()) for part in (content, bias, total)) or 1.0
    maps = (
        ("content", "content q·k", content, top, x, "keys of x"),
        ("bias", "bias f(j − i)", bias, top, x, "keys of x"),
        ("total", "sum", total, top, x, "keys of x"),
        ("weights", "weights", weights, 1.0, y, "values of y"),
    )
    return "".join(_map(x, *one) for one in maps)


def _map(x: str, name: str, title: str, data: np.ndarray, top: float, columns: str, what: str) -> str:
    N = data.shape[-1]
    cell = SIZE / N
    parts = [text(LEFT, 14, title, "lab-title"), text(LEFT + SIZE, 14, what, "lab-tick", "end")]
    for k in range(N):
        middle = (k + 0.5) * cell
        parts.append(text(LEFT + middle, TOP - 6, columns[k], "lab-letter", "middle"))
        parts.append(text(LEFT - 6, TOP + middle + 4, x[k], "lab-letter", "end"))
    for i in range(N):
        for j in range(N):
            share = float(data[i, j]) / top
            kind = "lab-cell" + (" lab-weight" if name == "weights" else " lab-low" if share < 0 else " lab-high")
            more = f'fill-opacity="{abs(share):.3f}" data-i="{i}" data-j="{j}"'
            parts.append(rect(LEFT + j * cell + 0.5, TOP + i * cell + 0.5, cell - 1, cell - 1, kind, more))
    i, j = np.unravel_index(int(np.argmax(data)), data.shape)
    label = f"{title}: {N} queries by {N} positions, largest for query {i + 1} at position {j + 1}."
    return svg(LEFT + SIZE + 4, TOP + SIZE + 4, label, parts, f"lab-map lab-map-{name}")


def curve_svg(knots: np.ndarray, highest: float, length: int) -> str:
    """f between the knots. It is stretched to the width of the row of sliders; its height is theirs."""
    count = knots.size
    middle, reach = count // 2, length - 1

    def at(k: int) -> tuple[float, float]:
        share = (float(knots[k]) + highest) / (2 * highest)
        return (k + 0.5) * COLUMN, THUMB / 2 + (1 - share) * (CURVE_HEIGHT - THUMB)

    zero = CURVE_HEIGHT / 2
    parts = [path([(0, zero), (count * COLUMN, zero)], "lab-grid")]
    parts.append(path([(middle * COLUMN + COLUMN / 2, 0), (middle * COLUMN + COLUMN / 2, CURVE_HEIGHT)], "lab-grid"))
    parts.append(path([at(k) for k in range(middle - reach, middle + reach + 1)], "lab-exact"))
    return (
        f'<svg class="lab-curve-svg" viewBox="0 0 {count * COLUMN} {CURVE_HEIGHT}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(parts)}</svg>'
    )
