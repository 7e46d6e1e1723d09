"""Pieces of SVG and HTML. Colours are classes, so that the page's style sheet has them for light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["circle", "number", "path", "rect", "svg", "table", "text", "with_error"]


def number(value: float, digits: int = 3) -> str:
    """A number with a few digits, as a reader would write it."""
    if value != value or value in (float("inf"), float("-inf")):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), "not a number")
    shown = f"{value:.{digits}g}"
    if "e" in shown:
        mantissa, _, exponent = shown.partition("e")
        shown = f"{value:.0f}" if 0 < int(exponent) < 7 else f"{mantissa}×10^{int(exponent)}"
    return shown.replace("-", "−")


def with_error(value: float, error: float) -> str:
    """A measured number to the second digit of its standard error."""
    if not 0 < error < math.inf:
        return f"{number(value)} ± {number(error)}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def svg(width: float, height: float, label: str, parts: Iterable[str], kind: str = "") -> str:
    """A drawing that scales with its column; ``label`` is what a screen reader says of it."""
    return (
        f'<svg class="lab-svg {kind}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def path(points: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> str:
    where = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{kind}" d="M{where}{"Z" if closed else ""}"/>'


def circle(x: float, y: float, radius: float, kind: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, more: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        f"{' ' if more else ''}{more}/>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names its rows."""
    first = "".join(f'<th scope="col">{escape(one)}</th>' if one else "<td></td>" for one in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f"<table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table>"
