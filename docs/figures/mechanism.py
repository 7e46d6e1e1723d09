"""Draw the mechanism of indirect attention (P11) as docs/_static/mechanism.svg.

The values are colours, so that an output is seen to be a mixture of them. Everything in the picture
is computed by ia_core on one small example. `python docs/figures/mechanism.py` writes it, from
anywhere, and build/mechanism.png to look at.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ia_core import OffsetMLP, PositionBias, indirect_attention

ROOT = Path(__file__).parents[2]
M, N, D = 5, 7, 16
AHEAD, PEAK = 2, 3.0  # f is largest where the value stands two places ahead of the query
SEED = 7

CELL = 0.275  # inches, as all lengths below
LEFT, RIGHT, BOTTOM, TOP, GAP = 0.66, 1.6, 0.52, 1.5, 0.6
WIDTH = LEFT + 4 * N * CELL + 3 * GAP + RIGHT
HEIGHT = BOTTOM + M * CELL + TOP
INK, FAINT = "#22272e", "#8b949e"
LUMINANCE = np.asarray([0.299, 0.587, 0.114])


class Example(NamedTuple):
    """One head: content and bias (M, N), weights (M, N), value (N, 3) and output (M, 3) as colours."""

    content: np.ndarray
    bias: np.ndarray
    weights: np.ndarray
    value: np.ndarray
    output: np.ndarray


def tent() -> OffsetMLP:
    """f(t) = PEAK - |t - AHEAD|, as the two-layer network that it is."""
    first = np.asarray([1.0, -1.0])
    return OffsetMLP(first, -AHEAD * first, np.full((2, 1), -1.0), np.full(1, PEAK))


def example() -> Example:
    """Queries that resemble keys at places that have nothing to do with where the values stand."""
    rng = np.random.default_rng(SEED)
    key = rng.standard_normal((1, N, D))
    query = 0.65 * key[:, rng.permutation(N)[:M]] + 0.25 * rng.standard_normal((1, M, D))
    value = plt.get_cmap("turbo")(np.linspace(0.06, 0.94, N))[None, :, :3]
    bias = PositionBias(tent(), np.arange(M, dtype=float), np.arange(N, dtype=float))
    output, lse = indirect_attention(query, key, value, bias=bias, return_lse=True)
    content = (query @ key.swapaxes(-1, -2) / np.sqrt(D))[0]
    weights = np.exp(content + bias.dense()[0] - lse[0][:, None])
    np.testing.assert_allclose(weights @ value[0], output[0], rtol=1e-12)  # the panels tell one story
    return Example(content, bias.dense()[0], weights, value[0], output[0])


def panel(figure: Figure, column: int) -> Axes:
    """Axes of the map in a column, one unit per cell, row 0 at the top."""
    left = LEFT + column * (N * CELL + GAP)
    place = (left / WIDTH, BOTTOM / HEIGHT, N * CELL / WIDTH, M * CELL / HEIGHT)
    axes = figure.add_axes(place)
    axes.set(xlim=(0, N), ylim=(M, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def heat_map(axes: Axes, data: np.ndarray, colours: str, low: float, high: float, line: str) -> None:
    """Cells as squares with lines between them, and what the two ends of the colours mean below."""
    mesh = axes.pcolormesh(data, cmap=colours, vmin=low, vmax=high, edgecolors=line, linewidth=1.2)
    bar = axes.inset_axes((0.2, -0.2, 0.6, 0.055))
    plt.colorbar(mesh, cax=bar, orientation="horizontal", ticks=[])
    bar.spines[:].set_visible(False)
    for at, value, side in ((-0.04, low, "right"), (1.04, high, "left")):
        text = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
        bar.text(at, 0.4, text, transform=bar.transAxes, ha=side, va="center", size=9.5, color=INK)


def tokens(axes: Axes, letter: str, colours: np.ndarray) -> None:
    """A sequence above a map, one token per column, with a line from each token to its column."""
    for j, colour in enumerate(colours):
        axes.add_patch(plt.Rectangle((j + 0.1, -1.42), 0.8, 0.9, facecolor=colour, edgecolor="none", clip_on=False))
        text = INK if colour @ LUMINANCE > 0.5 else "white"
        axes.text(j + 0.5, -0.97, f"${letter}_{j + 1}$", ha="center", va="center", size=11, color=text)
        axes.plot([j + 0.5] * 2, [-0.47, -0.06], color=FAINT, lw=0.8, clip_on=False)


def curve(axes: Axes) -> None:
    """The function f above the map of the biases that it gives."""
    inset = axes.inset_axes((0.0, 1.16, 1.0, 0.2))
    t = np.linspace(-M + 1, N - 1, 101)
    inset.plot(t, tent()(t[None, :])[0, 0], color="#9a3412", lw=1.8)
    inset.set(xlim=(-M + 1, N - 1), xticks=[-4, -2, 0, 2, 4, 6], yticks=[])
    inset.tick_params(labelsize=9, length=2, pad=1.5, colors=INK)
    inset.spines[["top", "right", "left"]].set_visible(False)
    inset.spines["bottom"].set_color(FAINT)


def heading(axes: Axes, name: str, formula: str, source: str, at: float = N / 2) -> None:
    """What a map shows, in words and as a formula, and where it comes from."""
    centred = {"ha": "center", "va": "center", "clip_on": False}
    axes.text(at, -4.75, name, size=13.5, weight="bold", color=INK, **centred)
    axes.text(at, -3.65, formula, size=12.5, color=INK, **centred)
    axes.text(at, -2.55, source, size=10.5, color="#57606a", **centred)


def sign(axes: Axes, text: str, word: str = "") -> None:
    """What joins a map with the next one."""
    at = N + GAP / CELL / 2
    axes.text(at, M / 2, text, ha="center", va="center", size=20, color=INK, clip_on=False)
    axes.text(at, M / 2 - 0.6, word, ha="center", va="center", size=9.5, color=INK, clip_on=False)


def outputs(axes: Axes, output: np.ndarray) -> None:
    """The mixtures, one per row, right of the weights."""
    for i, colour in enumerate(np.clip(output, 0, 1)):
        axes.plot([N + 0.15, N + 1.35], [i + 0.5] * 2, color=FAINT, lw=0.8, clip_on=False)
        box = plt.Rectangle((N + 1.5, i + 0.05), 1.9, 0.9, facecolor=colour, edgecolor="none", clip_on=False)
        axes.add_patch(box)
        axes.text(N + 3.65, i + 0.5, f"$o_{i + 1}$", ha="left", va="center", size=12, color=INK)
    heading(axes, "output", r"$o_i = \Sigma_j\,\alpha_{ij}\,v_j$", "mixed values", at=N + 2.45)


def draw(shown: Example) -> Figure:
    figure = plt.figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    content, position, score, weight = (panel(figure, column) for column in range(4))
    total = shown.content + shown.bias
    top = float(np.ceil(max(np.abs(part).max() for part in (shown.content, shown.bias, total))))
    for axes, part in ((content, shown.content), (position, shown.bias), (score, total)):
        heat_map(axes, part, "RdBu_r", -top, top, "white")  # one scale, so that the eye can add
    heat_map(weight, shown.weights, "Greys", 0.0, 1.0, "#e6e8eb")
    heading(content, "content score", r"$q_i \cdot k_j\,/\,\sqrt{d_h}$", "keys from sequence X")
    heading(position, "bias", r"$f(P_{ij}),\quad P_{ij} = j - i$", "learned function of the offset")
    heading(score, "score", r"$s_{ij}$", "content score + bias")
    heading(weight, "weight", r"$\alpha_{ij} = \mathrm{softmax}_j(s_{ij})$", "values from sequence Y")
    tokens(content, "k", np.tile([0.79, 0.84, 0.92], (N, 1)))
    tokens(weight, "v", shown.value)
    curve(position)
    for i in range(M):
        content.text(-0.35, i + 0.5, f"$q_{i + 1}$", ha="right", va="center", size=11, color=INK)
    content.text(-1.6, M / 2, "queries", ha="center", va="center", size=10.5, color="#57606a", rotation=90)
    sign(content, "+")
    sign(position, "=")
    sign(score, r"$\rightarrow$", "softmax")
    outputs(weight, shown.output)
    return figure


def main() -> None:
    # Glyphs as outlines look the same everywhere; no date and a fixed salt make equal runs equal files.
    plt.rcParams.update({"svg.hashsalt": "mechanism", "svg.fonttype": "path", "mathtext.fontset": "cm"})
    figure = draw(example())
    figure.savefig(ROOT / "docs" / "_static" / "mechanism.svg", metadata={"Date": None})
    (ROOT / "build").mkdir(exist_ok=True)
    figure.savefig(ROOT / "build" / "mechanism.png", dpi=160)


if __name__ == "__main__":
    main()
