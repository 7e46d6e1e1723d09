"""Figures of the page, as SVG without dates, so that the same results give the same file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .._results import write_bytes
from ._statistics import Results, estimate

__all__ = ["curves", "gaps", "noise"]

COLOURS = {
    "indirect": "#0072b2",
    "naive": "#d55e00",
    "cross": "#009e73",
    "query-run cross": "#009e73",
    "cross with the bias": "#cc79a7",
    "dual encoder": "#666666",
}


def curves(results: Results, path: Path) -> None:
    """Test accuracy over training with 95 % intervals: the paper's Figure 2."""
    figure, axes = _figure(2)
    for axis, task in zip(axes, ("sorting", "retrieval"), strict=True):
        for name in ("indirect", "naive", "cross", "query-run cross"):
            found = results.records.get(f"{task}: {name}")
            if not found:
                continue
            rows = np.asarray([record["results"]["curve"] for record in found.values()])  # (seeds, points, 3)
            steps, estimates = rows[0, :, 0], [estimate(point) for point in rows[:, :, 1].T]
            colour, style = COLOURS[name], "--" if name == "query-run cross" else "-"
            axis.plot(steps, [one.mean for one in estimates], style, color=colour, label=name)
            low, high = [one.low for one in estimates], [one.high for one in estimates]
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=task, xlabel="step", ylabel="accuracy on 2,000 test instances", ylim=(0.0, 1.0))
        axis.legend()
    _write(figure, path)


def noise(results: Results, path: Path) -> None:
    """Accuracy over the noise on the values."""
    figure, axes = _figure(2)
    for axis, task in zip(axes, ("sorting", "retrieval"), strict=True):
        for name in ("indirect", "naive", "cross", "query-run cross"):
            found = results.records.get(f"{task}: {name}")
            if not found:
                continue
            rows = np.asarray([record["results"]["noise"]["sigma"] for record in found.values()])
            colour, style = COLOURS[name], "--" if name == "query-run cross" else "-"
            axis.plot(rows[0, :, 0], rows[:, :, 1].mean(axis=0), style, color=colour, label=name)
        axis.axvline(1.0, color="#999999", linewidth=0.8)
        axis.set(
            title=task, xlabel="σ / σ of the value source (line: SNR = 1 by P7)", ylabel="accuracy", ylim=(0.0, 1.0)
        )
        axis.legend()
    _write(figure, path)


def gaps(results: Results, path: Path) -> None:
    """Recall at 1 over the gap between letters."""
    figure, (axis,) = _figure(1)
    for name, found in results.records.items():
        rows = [[one["recall"][gap]["word_at_1"] for gap in ("0", "3", "6", "9", "12")] for one in _all(found)]
        estimates = [estimate(column) for column in np.asarray(rows).T]
        style = {"naive": ":", "cross": "--"}.get(name, "-")
        halves = [one.high - one.mean for one in estimates]
        means = [one.mean for one in estimates]
        axis.errorbar((0, 3, 6, 9, 12), means, halves, fmt=style, color=COLOURS.get(name), label=name, capsize=2)
    axis.axvspan(0.0, 6.0, color="#999999", alpha=0.15, linewidth=0)
    axis.set(xlabel="gap, pixels (shaded: trained)", ylabel="R@1, %", ylim=(0.0, 100.0))
    axis.legend()
    _write(figure, path)


def _all(found: Any) -> list[Any]:
    return [record["results"] for record in found.values()]


def _figure(columns: int) -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "experiments", "font.size": 9.0})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(4.2 * columns, 3.2), layout="constrained", squeeze=False)
    return figure, axes[0]


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    lines = [line.rstrip() for line in file.getvalue().decode().splitlines()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
