"""Draw noise and misalignment against width and effective tokens: the paper's Figure 1, and a fourth panel.

    python docs/figures/thresholds.py [--panel a b c d] [--dim 4 16 64 256] [--n 64] [--shift 0 0.5 1]

Lines are the closed forms of ia_core.noise, dots are simulations with intervals of 95 %. Without options it writes
docs/_static/thresholds.svg and docs/results/thresholds.json; with options build/thresholds.svg, .png and .json, of the
panels that were asked for. The cells run one by one in an editor that knows ``# %%``.
"""

# %% What may be changed: widths, tokens, and by how much the mean of a component is shifted.
from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ia_core import noise, simulate
from ia_core.conformance._files import write_whole

# An editor that runs cells shows a panel below its cell; the command writes files.
INTERACTIVE = "ipykernel" in sys.modules
if not INTERACTIVE:
    plt.switch_backend("Agg")

WIDTHS = (4, 16, 64, 256)
N = 64
SHIFTS = (0.0, 0.5, 1.0)

PRECISION, SEED = 0.01, 1
COLOURS = ("#2f6f9f", "#b3403a", "#3f8f5a", "#8a6d3b")
PAPER: dict[str, Any] = {"ls": "--", "color": "#57606a", "lw": 1}
Rows = list[dict[str, Any]]
Panel = Callable[[Axes, tuple[int, ...], int, tuple[float, ...]], Rows]


def show(panel: Panel) -> None:
    """A panel by itself, with the numbers above."""
    panel(plt.subplots()[1], WIDTHS, N, SHIFTS)
    plt.show()


def weights_of(n: int) -> dict[str, np.ndarray]:
    """One-hot, softmax of twice normal scores, uniform."""
    raised = np.exp(2 * np.random.default_rng(SEED).standard_normal(n))
    return {"one-hot": np.eye(n)[0], "soft": raised / raised.sum(), "uniform": np.full(n, 1 / n)}


def measured(sampler: simulate.Sampler, **where: Any) -> dict[str, Any]:
    """One dot: what was found, its interval and the closed form."""
    found = simulate.run(sampler, precision=PRECISION, seed=SEED)
    low, high = found.interval()
    numbers = {"mean": found.mean, "low": low, "high": high, "theory": sampler.theory}
    return {**where, **{name: float(value) for name, value in numbers.items()}, "samples": found.samples}


def dots(
    axes: Axes, x: list[float], rows: Rows, label: str, colour: str, *, root: bool = False, hollow: bool = False
) -> None:
    """Dots with intervals, and the closed form as a line; of square roots if asked for."""
    names = ("mean", "low", "high", "theory")
    mean, low, high, theory = (np.asarray([row[name] for row in rows]) for name in names)
    if root:
        mean, low, high, theory = (np.sqrt(values) for values in (mean, low, high, theory))
    axes.plot(x, theory, color=colour, lw=1.2, label=label)
    axes.errorbar(
        x,
        mean,
        yerr=[mean - low, high - mean],
        fmt="o",
        ms=4,
        capsize=2,
        color=colour,
        mfc="white" if hollow else colour,
    )


def plain(axes: Axes, x: list[float], y: list[float] | None = None) -> None:
    """Logarithmic axes with plain numbers: these at x, and at y if given."""
    for axis, ticks in ((axes.xaxis, x), (axes.yaxis, y)):
        if ticks is not None:
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())


# %% (a) SNR under additive noise: P6 and P7, exact, for means of 0. It does not depend on d.
def panel_a(axes: Axes, widths: tuple[int, ...], n: int, shifts: tuple[float, ...]) -> Rows:
    """SNR against width, for three levels of noise."""
    found: Rows = []
    for colour, sigma in zip(COLOURS, (0.5, 1.0, 2.0), strict=False):
        sampled = [
            measured(simulate.snr(weights_of(n)["soft"], sigma, dim=d), panel="a", sigma=sigma, d=d) for d in widths
        ]
        dots(axes, list(widths), sampled, f"$\\sigma$ = {sigma:g}", colour)
        found += sampled
    axes.axhline(1, **PAPER)
    axes.set(title="(a) additive noise", xlabel="d", ylabel="SNR", xscale="log", yscale="log")
    plain(axes, list(widths), [0.25, 0.5, 1, 2, 4])
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.92))
    return found


if INTERACTIVE:
    show(panel_a)


# %% (b) SNR under misalignment. Exact: signal over gamma. Dashed: 1 / gamma with gamma of P9, an energy of d components
# against the variance of one; this is what falls with d.
def panel_b(axes: Axes, widths: tuple[int, ...], n: int, shifts: tuple[float, ...]) -> Rows:
    """SNR against width, for shifts of the mean of every component."""
    found: Rows = []
    a = weights_of(n)["soft"]
    for colour, shift in zip(cycle(COLOURS), shifts, strict=False):
        sampled = []
        for d in widths:
            sampler = simulate.misalignment_snr(a, mean_x=np.zeros(d), mean_y=np.full(d, shift))
            paper = noise.misalignment_energy(a, mean_x=np.zeros(d), mean_y=np.full(d, shift), form="paper")
            sampled.append(measured(sampler, panel="b", shift=shift, d=d) | {"paper": float(1 / paper)})
        dots(axes, list(widths), sampled, f"shift {shift:g}", colour)
        axes.plot(widths, [row["paper"] for row in sampled], **PAPER | {"color": colour})
        found += sampled
    axes.axhline(1, **PAPER)
    axes.set(title="(b) misalignment", xlabel="d", ylabel="SNR (dashed: 1 / $\\gamma$, P9)", xscale="log", yscale="log")
    plain(axes, list(widths), [1, 0.1, 0.01, 0.001])
    axes.legend(fontsize=8)
    return found


if INTERACTIVE:
    show(panel_b)


# %% (c) gamma against width. Lines and dots: the exact form, for one-hot and uniform weights. Dashed: P9, which is the
# one-hot case and an upper bound of all.
def panel_c(axes: Axes, widths: tuple[int, ...], n: int, shifts: tuple[float, ...]) -> Rows:
    """gamma against width, for shifts of the mean and two kinds of weights."""
    found: Rows = []
    for colour, shift in zip(cycle(COLOURS), shifts, strict=False):
        for name, a in weights_of(n).items():
            if name == "soft":
                continue
            sampled = []
            for d in widths:
                means = {"mean_x": np.zeros(d), "mean_y": np.full(d, shift)}
                paper = noise.misalignment_energy(a, **means, form="paper")
                sampler = simulate.misalignment_energy(a, **means)
                sampled.append(measured(sampler, panel="c", weights=name, shift=shift, d=d) | {"paper": float(paper)})
            label = f"shift {shift:g}" if name == "one-hot" else ""
            dots(axes, list(widths), sampled, label, colour, hollow=name == "uniform")
            found += sampled
        axes.plot(widths, [row["paper"] for row in sampled], **PAPER | {"color": colour, "lw": 3, "alpha": 0.4})
    axes.plot([], [], "o", ms=4, color="#57606a", label="one-hot")
    axes.plot([], [], "o", ms=4, color="#57606a", mfc="white", label="uniform")
    axes.set(title="(c) misalignment", xlabel="d", ylabel="$\\gamma$ (pale: P9)", xscale="log", yscale="log")
    plain(axes, list(widths), [0.1, 1, 10, 100, 1000])
    axes.legend(fontsize=8)
    return found


if INTERACTIVE:
    show(panel_c)


# %% (d) The threshold against effective tokens: SNR at sigma = 1 is sigma*^2. Dashed: the paper's sigma* = 1.
def panel_d(axes: Axes, widths: tuple[int, ...], n: int, shifts: tuple[float, ...]) -> Rows:
    """Critical level against n_eff, for means of every component; here a shift is a mean of the tokens."""
    found: Rows = []
    d = widths[len(widths) // 2]
    normal = np.random.default_rng(SEED).standard_normal(n)
    raised = [np.exp(sharpness * normal) for sharpness in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 20.0)]
    rows = [scores / scores.sum() for scores in raised]
    for colour, mean in zip(cycle(COLOURS), shifts, strict=False):
        sampled = []
        for a in rows:
            tokens = float(noise.effective_tokens(a))
            sampler = simulate.snr(a, 1.0, mean=np.full(d, mean))
            sampled.append(measured(sampler, panel="d", mean_of_tokens=mean, d=d, n_eff=tokens))
        dots(axes, [row["n_eff"] for row in sampled], sampled, f"mean {mean:g}", colour, root=True)
        found += sampled
    axes.axhline(1, **PAPER)
    axes.set(title=f"(d) threshold, d = {d}", xlabel="$n_\\mathrm{eff}$", ylabel="$\\sigma^*$", xscale="log")
    plain(axes, [float(2**k) for k in range(n.bit_length())])
    axes.legend(fontsize=8)
    return found


if INTERACTIVE:
    show(panel_d)


# %% All of it
PANELS: dict[str, Panel] = {"a": panel_a, "b": panel_b, "c": panel_c, "d": panel_d}


def environment() -> dict[str, Any]:
    """When and on what it ran."""
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "matplotlib")}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **versions},
    }


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--panel", nargs="+", choices=list(PANELS), default=list(PANELS))
    parser.add_argument("--dim", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--shift", nargs="+", type=float, default=list(SHIFTS))
    options, root = parser.parse_args(), Path(__file__).parents[2]
    began = time.monotonic()
    columns = min(2, len(options.panel))
    lines = -(-len(options.panel) // columns)
    figure, all_axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.5 * lines), squeeze=False)
    rows: Rows = []
    for name, axes in zip(options.panel, all_axes.ravel(), strict=False):
        rows += PANELS[name](axes, tuple(options.dim), options.n, tuple(options.shift))
        print(f"panel {name}: {time.monotonic() - began:.0f} s", flush=True)
    figure.tight_layout()
    mine = options != parser.parse_args([])
    drawing = root / ("build" if mine else "docs/_static") / "thresholds.svg"
    (root / "build").mkdir(exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "thresholds"
    figure.savefig(drawing, metadata={"Date": None})
    figure.savefig(root / "build" / "thresholds.png", dpi=110)
    data = root / ("build" if mine else "docs/results") / "thresholds.json"
    facts = {**environment(), "seconds": round(time.monotonic() - began, 1)}
    facts |= {"precision": PRECISION, "seed": SEED, "n": options.n, "rows": rows}
    write_whole(data, json.dumps(facts, indent=1) + "\n")
    off = [(row["mean"] - row["theory"]) / ((row["high"] - row["low"]) / 3.92 or 1) for row in rows]
    print(f"{len(rows)} dots, the farthest {max(map(abs, off)):.2f} standard errors off; {drawing.relative_to(root)}")


if __name__ == "__main__" and not INTERACTIVE:
    main()
