"""Tables of the page, one function for each experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._registry import experiment
from ..synthetic._noise import FRACTIONS, SIGMAS
from ._statistics import Estimate, Results, estimate

__all__ = ["osod", "retrieval", "speech", "synthetic"]

Row = list[str]


def table(head: Row, rows: list[Row]) -> str:
    """A table in Markdown; nothing where there are no rows."""
    if not rows:
        return "*Not run yet.*\n"
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def told(found: Estimate | None, digits: int) -> str:
    """An estimate, or a dash."""
    return "–" if found is None else found.text(digits)


def absent(name: str, variant: str) -> Row:
    """The row of a variant without results, and how to get them."""
    return [variant, f"*not run yet:* `python -m experiments {name} --framework jax --only '{variant}'`"]


def accuracy(results: Any) -> float:
    """Share of right answers on 2,000 instances."""
    return float(results["accuracy"])


def synthetic(results: Results) -> str:
    """Main results, controls, ablations, tuning, noise."""
    parts = []
    for title, prefixes, reference in (
        ("The three models, sorting", ("sorting: ",), "sorting: naive"),
        ("The three models, retrieval", ("retrieval: ",), "retrieval: naive"),
        ("With self-attention in every block", ("sorting, self-attention", "retrieval, self-attention"), ""),
        ("Parts of indirect attention, sorting", ("sorting, ablation",), "sorting: indirect"),
        ("Parts of indirect attention, retrieval", ("retrieval, ablation",), "retrieval: indirect"),
        ("Ten times the data", ("sorting, 10 x", "retrieval, 10 x"), ""),
        ("Rates, embeddings and lengths of training that were tried, on seeds of their own", ("tuning",), ""),
    ):
        names = [name for name in experiment("synthetic").VARIANTS if name.startswith(prefixes)]
        if reference.endswith("indirect"):
            names.insert(0, reference)
        head = ["variant", "accuracy", "on the first 200", "seeds"]
        head += [f"paired difference to {reference.split(': ')[1]}"] if reference else []
        rows = []
        for name in names:
            found = results.of(name, accuracy)
            if found is None:
                rows.append(absent("synthetic", name))
                continue
            few = results.of(name, lambda one: one["accuracy_200"])
            row = [name, found.text(3), told(few, 3), str(found.n)]
            if reference:
                gap = results.gap(name, reference, accuracy)
                row.append("" if name == reference else told(gap, 3))
            rows.append(row)
        parts.append(f"### {title}\n\n{table(head, rows)}")
    return "\n".join([*parts, _noise(results)])


def _noise(results: Results) -> str:
    names = [name for name, options in experiment("synthetic").VARIANTS.items() if options.noise]
    names = [name for name in names if name in results.records]
    head = ["σ", *map("{:g}".format, SIGMAS), "first layer's SNR at σ = 1"]
    rows = []
    for name in names:
        found = [record["results"]["noise"] for record in results.records[name].values()]
        means = [estimate(one["sigma"][number][1] for one in found).mean for number in range(len(SIGMAS))]
        snr = estimate(one["first_layer_snr"] for one in found)
        rows.append([name, *(f"{mean:.3f}" for mean in means), snr.text(2)])
    moved = []
    for name in names:
        found = [record["results"]["noise"] for record in results.records[name].values()]
        means = [estimate(one["moved"][number][1] for one in found).mean for number in range(len(FRACTIONS))]
        moved.append([name, *(f"{mean:.3f}" for mean in means)])
    return (
        "### Noise on the values\n\n"
        "Accuracy of the trained models when their values carry noise of standard deviation σ, in units of the value "
        "source's own per component. P7 places SNR = 1 at σ = 1; the last column is the SNR that the first layer's "
        "heads really have there, because weights are not one-hot and outputs have a mean. Both tables are of 1,000 "
        "of the instances.\n\n"
        f"{table(head, rows)}\n"
        "Accuracy when a fraction of the values, rounded to a whole number of them, stands at another position than "
        "its key says. One value cannot move alone; the cross-attention that asks with the content of retrieval has 3, "
        "of which 0, 0, 0, 2, 2 and 3 move:\n\n"
        f"{table(['moved', *map('{:g}'.format, FRACTIONS)], moved)}"
    )


def osod(results: Results) -> str:
    """AP50 and AP75 on seen and unseen classes."""
    columns: dict[str, Callable[[Any], float]] = {
        f"{measure} {part}": (lambda one, part=part, measure=measure: one[part][measure])
        for measure in ("AP50", "AP75")
        for part in ("seen", "unseen")
    }
    tried = _plain("osod", results, columns, 1, tuning=True)
    return (
        _plain("osod", results, columns, 1)
        + f"\n### Lengths of training that were tried, on a split of the characters of its own\n\n{tried}"
    )


def speech(results: Results) -> str:
    """Phone onsets within 20 and 50 ms."""
    columns: dict[str, Callable[[Any], float]] = {
        "within 20 ms": lambda one: one["tests"]["known voices"]["within_20_ms"],
        "within 50 ms": lambda one: one["tests"]["known voices"]["within_50_ms"],
        "unseen voices, 20 ms": lambda one: one["tests"]["unseen voices"]["within_20_ms"],
        "10 dB, 20 ms": lambda one: one["tests"]["10 dB"]["within_20_ms"],
        "0 dB, 20 ms": lambda one: one["tests"]["0 dB"]["within_20_ms"],
        "mean error, ms": lambda one: one["tests"]["known voices"]["mean_error_ms"],
    }
    return _plain("speech", results, columns, 1)


def retrieval(results: Results) -> str:
    """Recall at 1 by gap."""
    columns: dict[str, Callable[[Any], float]] = {
        f"gap {gap}": (lambda one, gap=gap: one["recall"][gap]["word_at_1"]) for gap in ("0", "3", "6", "9", "12")
    }
    return _plain("retrieval", results, columns, 1)


def _plain(
    owner: str, results: Results, columns: dict[str, Callable[[Any], float]], digits: int, *, tuning: bool = False
) -> str:
    rows = []
    for name in experiment(owner).VARIANTS:
        if name.startswith("tuning") != tuning:
            continue
        found = results.records.get(name)
        if not found:
            rows.append(absent(owner, name))
            continue
        draws = len({draw for draw, _ in found})
        seeds = f"{len(found)} in {draws} draw{'s' if draws > 1 else ''}"
        rows.append([name, *(told(results.of(name, read), digits) for read in columns.values()), seeds])
    return table(["variant", *columns, "seeds"], rows)
