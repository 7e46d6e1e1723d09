"""Tables and a figure of what bench_attention.py found."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ia_core.conformance._files import write_whole

__all__ = ["report"]

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs/_static/performance.svg"
NAMES = ("matrix", "ours", "uncompiled", "composition", "flex")
Record = dict[str, Any]


def report(record: Record, stem: str) -> int:
    """The table of a file attention_times*.json, and the figure of the one without more to its name."""
    suffix = stem.removeprefix("attention_times")
    lines = ["% Written by benchmarks/bench_attention.py.", ""]
    some = list(record["comparisons"].values())
    days = "/".join(sorted({one["date"] for one in some}))
    lines += [f"{days}, " + ", ".join(f"{name} {what}" for name, what in record["environment"].items()) + ".", ""]
    if "dispatch" in record:
        more = record["dispatch"]["more"]
        spread = f"{more['quartiles'][0]} to {more['quartiles'][1]}"
        lines += [f"Dispatch of a plain PyTorch call of 16 x 16 scores: {more['median']} µs more ({spread}).", ""]
    for library in dict.fromkeys(one["library"] for one in some):
        lines += _table([one for one in some if one["library"] == library and not one["alone"]], library)
        lines += _memory([one for one in some if one["library"] == library and one["alone"]], library)
    write_whole(ROOT / f"docs/generated/performance{suffix}.md", "\n".join(lines) + "\n")
    if not suffix:
        _draw([one for one in some if not one["alone"] and one["library"] == "torch"])
    return 0


def _table(some: list[Record], library: str) -> list[str]:
    head = ["M = N", "heads", "hidden", "positions", "threads", *NAMES, "MiB: matrix", "MiB: ours", "share"]
    lines = []
    for gradients in (False, True):
        rows = [one for one in some if one["setting"]["gradients"] == gradients]
        if rows:
            what = "forward and backward" if gradients else "forward"
            lines += [f"**{library}, {what}**", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
            lines += [f"| {' | '.join(_cells(one))} |" for one in rows] + [""]
    return lines


def _cells(one: Record) -> list[str]:
    at, found = one["setting"], one["contenders"]
    first = [str(at["n"]), f"{at['heads']} x {at['width']}", str(at["hidden"]), at["positions"], str(one["threads"])]
    memory = [str(found.get(who, {}).get("peak_mib", "")) for who in ("matrix", "ours")]
    return [*first, *(_ratio(found.get(who)) for who in NAMES), *memory, _share(one)]


def _ratio(one: Record | None) -> str:
    if one is None:
        return ""
    if "ratio" not in one:
        return str(one.get("left_out", one.get("failed", "failed")))
    low, high = one["ratio"]["quartiles"]
    return f"{one['ratio']['median']:.2f} ({low:.2f} to {high:.2f})"


def _share(one: Record) -> str:
    """The rate of ours, counting its products of matrices, beside that of one large product."""
    ours, at = one["contenders"].get("ours", {}), one["setting"]
    if "seconds" not in ours or "matrix_product_gflops" not in one:
        return ""
    products = 7 if at["gradients"] else 2  # backward: five, and the two of the forward pass before
    operations = products * 2 * at["n"] ** 2 * at["width"] * at["heads"]
    return f"{operations / statistics.median(ours['seconds']) / 1e9 / one['matrix_product_gflops']:.0%}"


def _memory(some: list[Record], library: str) -> list[str]:
    lines = []
    for one in some:
        at = one["setting"]
        numbers = at["n"] * at["width"] * at["heads"]
        results = 3 * numbers if at["gradients"] else numbers
        what = "forward and backward" if at["gradients"] else "forward"
        found = [
            f"{name} " + (f"{each['peak_mib']:.0f} MiB" if "peak_mib" in each else f"failed, {each['failed']}")
            for name, each in one["contenders"].items()
        ]
        size = f"M = N = {at['n']}, whose results are {results * 4 / 2**20:.0f} MiB"
        lines.append(f"- {library}, {what}, {size}: {', '.join(found)}.")
    return [*lines, ""] if lines else []


def _draw(some: list[Record]) -> None:
    """Ratio to attention without a bias over the number of tokens; one panel for each number of hidden units."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    chosen = [one for one in some if (one["setting"]["width"], one["setting"]["positions"]) == (64, "real")]
    most = max((one["threads"] for one in chosen), default=1)
    chosen = [one for one in chosen if one["threads"] == most]
    hidden = sorted({one["setting"]["hidden"] for one in chosen})
    if not hidden:
        return
    plt.rcParams["svg.hashsalt"] = "performance"
    figure, axes = plt.subplots(2, len(hidden), figsize=(4 * len(hidden), 7), squeeze=False, sharey="row", sharex=True)
    for (row, gradients), (column, units) in (
        ((r, g), (c, u)) for r, g in enumerate((False, True)) for c, u in enumerate(hidden)
    ):
        panel = axes[row][column]
        for number, name in enumerate(NAMES):
            points = sorted(
                (one["setting"]["n"], one["contenders"][name]["ratio"])
                for one in chosen
                if (one["setting"]["gradients"], one["setting"]["hidden"]) == (gradients, units)
                and "ratio" in one["contenders"].get(name, {})
            )
            if points:
                sizes, ratios = zip(*points, strict=True)
                middle = [ratio["median"] for ratio in ratios]
                ends = [[abs(ratio["quartiles"][k] - ratio["median"]) for ratio in ratios] for k in (0, 1)]
                panel.errorbar(sizes, middle, ends, marker="o", capsize=2, color=f"C{number}")
        panel.set(xscale="log", yscale="log", title=f"{units} hidden, forward{' and backward' if gradients else ''}")
        panel.axhline(1.0, color="gray", linewidth=0.8)
        panel.grid(visible=True, which="both", alpha=0.2)
    for panel in axes[1]:
        panel.set_xlabel("M = N")
    axes[0][0].set_ylabel("time / attention without a bias")
    axes[1][0].set_ylabel("time / attention without a bias")
    marks = [Line2D([], [], marker="o", color=f"C{number}", label=name) for number, name in enumerate(NAMES)]
    figure.legend(handles=marks, loc="lower center", ncols=len(NAMES), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(FIGURE, metadata={"Date": None})
