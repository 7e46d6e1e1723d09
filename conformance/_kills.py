"""The kill matrix as text, JSON and Markdown.

``python -m ia_core.conformance._kills docs/generated/mutants.md MATRIX.json [RATES.json ...]`` writes the tables of
docs/mutants.md from what ``ia-core conform --self-test --json F`` wrote.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ._clause import CLAUSES
from ._self_test import Kills, self_test
from ._targets import select_clauses
from .mutants import FAMILIES, MUTANTS

__all__ = ["as_data", "lines_of", "markdown", "matrix_lines", "run_self_test"]

# A clause has power of its own if it kills a bug that at most this many others do.
FEW = 2
# Seconds between two lines where there is no terminal.
EVERY = 15.0
MARKS = {"killed": "x", "passed": ".", "not supported": " ", "broken": "!"}


def run_self_test(options: argparse.Namespace, versions: Mapping[str, str]) -> int:
    """What ``ia-core conform --self-test`` does; the exit status of the command."""
    try:
        if options.targets:
            raise ValueError(
                f"`--self-test` judges known bugs, and takes no target; got {options.targets[0]} [IA-X-21]"
            )
        clauses = select_clauses(options.clause)
        seeds = range(options.seed, options.seed + options.seeds)
        with _bar() as tell:
            kills = self_test(
                profile=options.profile,
                mode=options.self_test,
                seeds=seeds,
                clauses=clauses,
                workers=options.workers,
                tell=tell,
            )
    except (TypeError, ValueError) as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 2
    data = as_data(kills, versions)
    print("\n".join([*(matrix_lines(kills) if kills.mode == "matrix" else []), *lines_of(kills)]))
    if options.json:
        Path(options.json).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        Path(options.markdown).write_text(markdown(data), encoding="utf-8")
    return (0 if kills.good else 1) if kills.complete else 130


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, elsewhere a line now and then; on standard error."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                print(f"{done} of {total} judgements", file=sys.stderr, flush=True)

        yield say
        return
    columns: Any = (TextColumn("judging known bugs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def as_data(kills: Kills, versions: Mapping[str, str]) -> dict[str, Any]:
    """The self-test as plain data."""
    judged = kills.judged
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": dict(versions),
        "profile": kills.profile,
        "mode": kills.mode,
        "seeds": list(kills.seeds),
        "complete": kills.complete,
        "seconds": round(kills.seconds, 1),
        "rates": {str(seed): kills.rate(seed) for seed in kills.seeds},
        "survivors": {str(seed): kills.survivors(seed) for seed in kills.seeds},
        "absent": kills.absent,
        "mutants": [_mutant_data(kills, name) for name in judged],
        "clauses": _clauses_data(kills),
        "broken": [vars(f) for f in kills.findings if f.outcome == "broken"],
    }


def _mutant_data(kills: Kills, name: str) -> dict[str, Any]:
    mutant = MUTANTS[name]
    counts = Counter(f.label for f in kills.findings if f.mutant == name and f.outcome == "killed")
    return {
        "name": name,
        "family": mutant.family,
        "change": mutant.change,
        "named": list(mutant.killed_by),
        "only_full": mutant.only_full,
        "killed_by": dict(sorted(counts.items())),
        "killed_with_seeds": sum(bool(kills.clauses_that_kill(name, seed)) for seed in kills.seeds),
    }


def _clauses_data(kills: Kills) -> dict[str, Any]:
    killers = {name: kills.clauses_that_kill(name) for name in kills.judged}
    seconds = Counter[str]()
    for finding in kills.findings:
        seconds[finding.label] += finding.seconds  # type: ignore[assignment]
    found = {}
    for label in sorted(seconds):
        kills_of = [name for name, labels in killers.items() if label in labels]
        rare = sorted(kills_of, key=lambda name: len(killers[name]))
        found[label] = {
            "title": CLAUSES[label].title,
            "level": CLAUSES[label].level,
            "kills": len(kills_of),
            "few_others": [name for name in rare if len(killers[name]) <= FEW + 1],
            "seconds": round(seconds[label], 2),
        }
    return found


def matrix_lines(kills: Kills) -> list[str]:
    """One row for each bug, one column for each clause: x killed, . passed, blank not supported, ! broken."""
    labels = sorted({finding.label for finding in kills.findings})
    cells: dict[tuple[str, str], str] = {}
    for finding in kills.findings:
        key = (finding.mutant, finding.label)
        if cells.get(key) != "x":
            cells[key] = MARKS[finding.outcome]
    width = max((len(name) for name in kills.judged), default=0)
    heads = [label.removeprefix("IA-").replace("-", "") for label in labels]
    lines = [" " * (width + 1) + "".join(head[row] for head in heads) for row in range(3)]
    for family, words in FAMILIES.items():
        names = [name for name in kills.judged if MUTANTS[name].family == family]
        lines += [f"-- {words}"] if names else []
        for name in names:
            row = "".join(cells.get((name, label), " ") for label in labels)
            lines.append(f"{name:<{width}} {row}")
    return lines


def lines_of(kills: Kills) -> list[str]:
    """What a person needs to know after the matrix."""
    lines = []
    for seed in kills.seeds:
        judged = {f.mutant for f in kills.findings if f.seed == seed}
        killed = len(judged) - len(judged & set(kills.survivors(seed)))
        lines.append(f"seed {seed}: {killed} of {len(judged)} bugs killed ({kills.rate(seed):.1%})")
        lines += [f"  survives: {name} ({MUTANTS[name].change})" for name in kills.survivors(seed) if name in judged]
    for library in sorted(set(kills.absent.values())):
        count = sum(one == library for one in kills.absent.values())
        lines.append(f"{count} bugs were not judged, because {library} is not here")
    lines += [f"broken: {f.label} on {f.mutant}: {f.reason}" for f in kills.findings if f.outcome == "broken"]
    if kills.mode == "matrix":
        weak = [
            label for label, row in _clauses_data(kills).items() if row["level"] == "core" and not row["few_others"]
        ]
        lines.append(f"core clauses that kill no bug which at most {FEW} others do: {', '.join(weak) or 'none'}")
    if not kills.complete:
        lines.append(f"interrupted after {len(kills.findings)} judgements")
    return lines


def markdown(data: Mapping[str, Any], *others: Mapping[str, Any]) -> str:
    """The tables of docs/mutants.md, from what :func:`as_data` gave; of the others the rates alone."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [
        f"The matrix is of the profile {data['profile']}, {_span(data['seeds'])} ({versions}).",
        "",
        *("| date | profile | mode | seeds | bugs | killed | never killed | seconds, machine |", "| --- " * 8 + "|"),
        *(_rate_row(one) for one in (data, *others)),
        "",
    ]
    for family, words in FAMILIES.items():
        rows = [m for m in data["mutants"] if m["family"] == family]
        if rows:
            lines += [
                f"### {words[0].upper()}{words[1:]}",
                "",
                "| bug | what is wrong | killed by |",
                "| --- | --- | --- |",
            ]
            lines += [f"| {m['name']} | {_escape(m['change'])} | {_killers(m)} |" for m in rows] + [""]
    lines += [
        "### What each core clause adds",
        "",
        "| clause | kills | of these few others kill |",
        "| --- | --- | --- |",
    ]
    for label, row in data["clauses"].items():
        if row["level"] == "core":
            shown = ", ".join(row["few_others"][:3]) + (", ..." if len(row["few_others"]) > 3 else "")
            lines.append(f"| {label} | {row['kills']} | {shown or '-'} |")
    return "\n".join([*lines, ""])


def _rate_row(data: Mapping[str, Any]) -> str:
    rates, machine = sorted(data["rates"].values()), data["machine"]
    killed = f"{rates[0]:.1%}" if rates[0] == rates[-1] else f"{rates[0]:.1%} to {rates[-1]:.1%}"
    never = set.intersection(*(set(names) for names in data["survivors"].values()))
    where = f"{data['seconds']:.0f}, {machine['cpus']} processors, {machine['processor']}, Python {machine['python']}"
    cells = [data["date"][:10], data["profile"], data["mode"], _span(data["seeds"]), str(len(data["mutants"]))]
    return f"| {' | '.join(cells)} | {killed} | {', '.join(sorted(never)) or '-'} | {where} |"


def _span(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _killers(row: Mapping[str, Any]) -> str:
    """The named clauses in bold, and how many besides."""
    killed = set(row["killed_by"])
    named = ", ".join(f"**{label}**" if label in killed else f"({label})" for label in row["named"])
    rest = sorted(killed - set(row["named"]))
    shown = ", ".join(rest[:3])
    more = f"; also {shown}" + (f" and {len(rest) - 3} more" if len(rest) > 3 else "") if rest else ""
    return named + more + (" (profile full)" if row["only_full"] else "")


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Sequence[str]) -> int:
    """From JSON to Markdown."""
    if len(arguments) < 2:
        print("usage: python -m ia_core.conformance._kills TABLE.md MATRIX.json [RATES.json ...]", file=sys.stderr)
        return 2
    table, *files = (Path(path) for path in arguments)
    table.write_text(markdown(*(json.loads(file.read_text(encoding="utf-8")) for file in files)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
