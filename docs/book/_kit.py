"""Figures of the book: theory is a line, a measurement is dots with error bars. They suit both themes of the site.

Imported by cells whose input is hidden. A figure is shown as SVG inside of the page, so that its ink follows the
page's theme and its text the page's font::

    figure, axes = _kit.figure()
    _kit.line(axes, n, theory, "theory")
    _kit.dots(axes, n, found, "measured")
    _kit.show(figure, "SNR against n: the dots lie on the line.", name="snr")
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

INK, PALE = "#010203", "#040506"  # stand for colours of the theme, and are drawn by nothing else
THEMED = {INK: "var(--color-foreground-primary, #222)", PALE: "var(--color-background-border, #ccc)"}
# Each is told from white and from black by a contrast above 3, and from the others by its marker and dashes as well.
COLOURS = ("#3a7fc1", "#d0661e", "#2f9159", "#9a64c8", "#85764f")
MARKERS, DASHES = ("o", "s", "^", "D", "v"), ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
STYLE = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 11,
    "grid.color": PALE,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "mathtext.fontset": "dejavusans",
    "svg.fonttype": "none",  # text stays text: read aloud, selected, and in the page's font
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
plt.rcParams.update(STYLE)


class Picture:
    """A figure as SVG in the page."""

    def __init__(self, svg: str, alt: str) -> None:
        self.svg, self.alt = svg, alt

    def _repr_html_(self) -> str:
        return f'<div class="book-figure">{self.svg}</div>'

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def figure(columns: int = 1, *, rows: int = 1, width: float = 5.8, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes, one or an array of them."""
    return plt.subplots(rows, columns, figsize=(width, height * rows))


def line(axes: Any, x: Any, y: Any, label: str = "", series: int = 0) -> None:
    """What theory says."""
    axes.plot(x, y, color=COLOURS[series], ls=DASHES[series], lw=1.8, label=label, zorder=2)


def dots(axes: Any, x: Any, found: Any, label: str = "", series: int = 0) -> None:
    """What was measured, with intervals of 95 %: a result of ``ia_core.simulate.run``, a list, or (mean, low, high)."""
    if isinstance(found, tuple) and not hasattr(found, "interval"):
        mean, low, high = (np.asarray(part, dtype=float) for part in found)
    else:
        results = found if isinstance(found, list) else [found]
        mean = np.concatenate([np.ravel(one.mean) for one in results])
        low, high = (np.concatenate([np.ravel(one.interval()[end]) for one in results]) for end in (0, 1))
    axes.errorbar(
        x,
        mean,
        yerr=[mean - low, high - mean],
        fmt=MARKERS[series],
        color=COLOURS[series],
        ms=5,
        capsize=3,
        ls="none",
        label=label,
        zorder=3,
    )


def level(axes: Any, y: float, label: str = "") -> None:
    """A level to compare with, such as SNR = 1."""
    axes.axhline(y, color=INK, lw=1, ls=(0, (4, 3)), label=label, zorder=1)


def logarithmic(axes: Any, *, x: Any = None, y: Any = None) -> None:
    """Make an axis logarithmic, with plain numbers at these places and no marks between."""
    for name, axis, places in (("x", axes.xaxis, x), ("y", axes.yaxis, y)):
        if places is not None:
            axes.set(**{f"{name}scale": "log"})
            axis.set_ticks(places, [f"{place:g}" for place in places])
            axis.set_minor_locator(NullLocator())


def heat(axes: Any, values: Any, *, title: str = "", low: float | None = None, high: float | None = None) -> Any:
    """A matrix of one head: rows are queries i, columns positions j."""
    values = np.asarray(values, dtype=float)
    mesh = axes.pcolormesh(values, cmap="viridis", vmin=low, vmax=high, edgecolor="none")
    axes.set(title=title, xlabel="$j$", ylabel="$i$", aspect="equal")
    axes.set_xticks(np.arange(values.shape[1]) + 0.5, [str(j) for j in range(values.shape[1])])
    axes.set_yticks(np.arange(values.shape[0]) + 0.5, [str(i) for i in range(values.shape[0])])
    axes.invert_yaxis()
    axes.grid(False)
    return mesh


def show(drawn: Any, alt: str, *, name: str) -> Picture:
    """The figure as SVG. ``alt`` says what it shows to those who do not see it, ``name`` is its own on the page."""
    matplotlib.rcParams["svg.hashsalt"] = name  # the same figure is the same file
    text = io.StringIO()
    drawn.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(drawn)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    # Ids are unique in a page: what nothing refers to has none, the others have the figure's name in them.
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, themed in THEMED.items():
        svg = svg.replace(colour, themed)
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', svg)
    width = f"max-width: {float(size[1]) * 4 / 3:.0f}px"
    svg = svg.replace(size[0], f'style="{width}" role="img" aria-label="{html.escape(alt)}"')
    return Picture(svg, alt)
