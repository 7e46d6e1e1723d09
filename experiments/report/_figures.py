"""Figures of the page, as SVG without dates, so that the same results give the same file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .._results import write_bytes
from ._statistics import Results, estimate

__all__ = ["curves", "detections", "gaps", "noise", "onsets"]

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


def onsets(results: Results, path: Path) -> None:
    """A spectrogram with true and found onsets, of the first test utterance; it needs the data in the cache."""
    from ..speech._data import load

    found = [one for one in _all(results.records.get("indirect", {})) if "example" in one]
    if not found:
        return
    data, example = load(0, quick=False), found[0]["example"]
    count, length = int(data["test_count"][0]), int(data["test_length"][0])
    figure, (axis,) = _figure(1)
    figure.set_size_inches(8.4, 3.0)
    axis.imshow(
        data["test_mel"][0, : 2 * length].T, aspect="auto", origin="lower", cmap="Greys", extent=(0, length * 20, 0, 40)
    )
    for kind, times, style in (("true", data["test_onsets"][0, :count], "-"), ("found", example[:count], "--")):
        colour = COLOURS["indirect" if kind == "found" else "naive"]
        for number, frame in enumerate(times):
            axis.axvline(
                20.0 * frame, linestyle=style, color=colour, linewidth=1.2, label=kind if number == 0 else None
            )
    axis.set(xlabel="ms", ylabel="mel band")
    axis.legend(loc="upper right")
    _write(figure, path)


def detections(results: Results, path: Path) -> None:
    """Queries of unseen classes, what was found, and where the best detection looked; needs the data in the cache."""
    from ..osod._data import SIDE, load

    found = [one for one in _all(results.records.get("indirect", {})) if "examples" in one]
    if not found:
        return
    data, examples = load(0, quick=False), found[0]["examples"]
    queries = data["test_query"].reshape(-1, *data["test_query"].shape[3:])
    figure, axes = _figure(len(examples), 3)
    for column, example in zip(axes.T, examples, strict=True):
        scene, side = data["unseen_scene"][example["scene"]], int(len(example["attention"]) ** 0.5)
        column[0].imshow(queries[example["query"]], cmap="gray")
        column[1].imshow(scene, cmap="gray", extent=(0, SIDE, SIDE, 0))
        for x0, y0, x1, y1, chance in example["boxes"]:
            if chance > 0.3:
                frame = ([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0])
                column[1].plot(*(SIDE * np.asarray(line) for line in frame), color=COLOURS["naive"], linewidth=1.5)
        column[2].imshow(np.asarray(example["attention"]).reshape(side, side), cmap="viridis")
        for axis in column:
            axis.set_axis_off()
    figure.set_size_inches(1.4 * len(examples), 4.2)
    _write(figure, path)


def _all(found: Any) -> list[Any]:
    return [record["results"] for record in found.values()]


def _figure(columns: int, rows: int = 1) -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "experiments", "font.size": 9.0})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3.2), layout="constrained", squeeze=False)
    return figure, axes if rows > 1 else axes[0]


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    lines = [line.rstrip() for line in file.getvalue().decode().splitlines()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
