"""The page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._registry import NAMES
from .._results import RESULTS, ROOT, write_bytes
from . import _figures, _tables
from ._checksums import checksums, table_of
from ._claims import claims
from ._statistics import Results, load

__all__ = ["page", "write_report"]

INTRODUCTION = """\
# What of the paper reproduces

This page is generated from the files under `docs/results/experiments` by `python -m experiments report`: one for each
variant and seed, with its options, versions and machine. Intervals are 95 % intervals of the mean over seeds
(Student's t), given the draws of the data where seeds share these; a gap counts where its interval is above 0. Viterbi
and uniform alignment do not depend on the seed, so that their intervals say nothing. [](experiments.md) says how each
experiment is made.

## In short

Differences of indirect attention to the others, in points of each experiment's measure. Sorting and retrieval of runs
are without self-attention; there cross-attention cannot know more of a sorting than what [](experiments.md) derives.

"""
SECTIONS = {
    "synthetic": (
        "Synthetic tasks",
        "Section 6.1 of the paper. A seed changes data, orderings, order of batches and parameters.",
    ),
    "osod": (
        "One-shot detection in small",
        "Section 6.2 in small: 60 seen and 20 unseen kinds of characters. *Double cross* attends to the query image "
        "and then to the target.",
    ),
    "speech": (
        "Speech-text alignment",
        "Percent of phone onsets that are found within 20 or 50 ms, on phrases that no training has.",
    ),
    "retrieval": (
        "Pictures of words and written words",
        "R@1 in percent, 200 unseen words; gaps up to 6 pixels are those of training.",
    ),
}
TABLES = {
    "synthetic": _tables.synthetic,
    "osod": _tables.osod,
    "speech": _tables.speech,
    "retrieval": _tables.retrieval,
}
FIGURES = {
    "synthetic": (
        (_figures.curves, "experiments_curves.svg", "Accuracy over training, with 95 % intervals."),
        (_figures.noise, "experiments_noise.svg", "Accuracy over the noise on the values."),
    ),
    "osod": (
        (
            _figures.detections,
            "experiments_detections.svg",
            "Unseen classes: the query image, what was found, some of it wrong, and where the best detection looked.",
        ),
    ),
    "speech": (
        (
            _figures.onsets,
            "experiments_onsets.svg",
            "A test utterance with the true and the found onsets of its phones.",
        ),
    ),
    "retrieval": ((_figures.gaps, "experiments_gaps.svg", "Recall over the gap between letters."),),
}


def write_report() -> int:
    """Write docs/reproduction.md and its figures."""
    found = {name: load(RESULTS, name) for name in NAMES}
    for name, figures in FIGURES.items():
        for draw, file, _ in figures:
            if not found[name].records:
                continue
            try:
                draw(found[name], ROOT / "docs/_static" / file)
            except ImportError as error:  # its data cannot be made here: the figure stays as it is
                print(f"{file} is not drawn anew: {error}")
    path: Path = ROOT / "docs/reproduction.md"
    write_bytes(path, (page(found) + _data(RESULTS / "data.json")).encode())
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


def page(found: dict[str, Results]) -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION, *comparisons(found), "## Claims\n", _verdicts(found)]
    for name, (title, what) in SECTIONS.items():
        parts += [
            f"## {title}\n\n{what} To run it: `python -m experiments {name} --framework jax`.\n",
            _made_by(found[name]),
        ]
        drawn = [(file, text) for _, file, text in FIGURES.get(name, ()) if (ROOT / "docs/_static" / file).exists()]
        parts += [f"![{text}](_static/{file})\n" for file, text in drawn]
        parts.append(TABLES[name](found[name]))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def comparisons(found: dict[str, Results]) -> list[str]:
    """Indirect attention beside the others, one table for all experiments: differences in points."""
    others = {
        "no bias (naive)": ("sorting: naive", "retrieval: naive", "naive", "naive", "naive"),
        "cross-attention, no bias": ("sorting: cross", "retrieval: cross", "double cross", "cross", "cross"),
        "cross-attention, the same bias": (
            "sorting: cross with the bias",
            "retrieval: cross with the bias",
            "double cross with the bias",
            "cross with the bias",
            "cross with the bias",
        ),
        "cross-attention that asks with the run": ("", "retrieval: query-run cross", "", "", ""),
    }
    columns: list[tuple[str, str, str, Any]] = [
        ("sorting", "synthetic", "sorting: indirect", lambda one: 100.0 * one["accuracy"]),
        ("retrieval of runs", "synthetic", "retrieval: indirect", lambda one: 100.0 * one["accuracy"]),
        ("detection, unseen", "osod", "indirect", lambda one: one["unseen"]["AP50"]),
        ("alignment, 20 ms", "speech", "indirect", lambda one: one["tests"]["known voices"]["within_20_ms"]),
        ("words, gap 6", "retrieval", "indirect", lambda one: one["recall"]["6"]["word_at_1"]),
    ]
    rows = []
    for title, variants in others.items():
        row = [title]
        for (_, name, own, read), other in zip(columns, variants, strict=True):
            gap = found[name].gap(own, other, read) if other else None
            row.append(_tables.told(gap, 1) if gap or not other else "*not run yet*")
        rows.append(row)
    return [_tables.table(["indirect minus", *(title for title, *_ in columns)], rows)]


def _verdicts(found: dict[str, Results]) -> str:
    rows = [[one.text, one.source, f"**{one.verdict}**", one.evidence] for one in claims(found)]
    return _tables.table(["claim", "source", "verdict", "measured"], rows)


def _made_by(results: Results) -> str:
    """Machines and versions that the results name."""
    kinds: dict[str, int] = {}
    for record in _records(results):
        about = record["environment"]
        versions = ", ".join(f"{name} {version}" for name, version in about.items() if name != "processor")
        where = f"{record['framework']} on {record['device']} ({about['processor']}); {versions}"
        kinds[where] = kinds.get(where, 0) + 1
    if not kinds:
        return ""
    return "Made by " + "; and ".join(f"{where}: {count} results" for where, count in kinds.items()) + ".\n"


def _data(path: Path) -> str:
    """The checksums of the data."""
    rows = table_of(checksums(path))
    if not rows:
        return ""
    told = "First 16 digits of the SHA-256 over names, shapes and contents of the arrays; `data.json` has all."
    return f"\n## Data\n\n{told}\n\n{_tables.table(['cached', 'SHA-256', 'made with'], rows)}"


def _records(results: Results) -> list[Any]:
    return [record for found in results.records.values() for record in found.values()]
