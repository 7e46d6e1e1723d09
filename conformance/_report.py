"""What a run found, as a terminal table, JSON and a self-contained HTML page."""

from __future__ import annotations

import datetime
import html
import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._clause import CLAUSES, FAMILIES
from ._verdict import Verdict

__all__ = ["print_report", "summary", "write_html", "write_json"]


def summary(
    verdicts: Sequence[Verdict], *, versions: dict[str, str], profile: str, seed: int, complete: bool
) -> dict[str, Any]:
    """The run as plain data: when, where, with what, and every verdict."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "versions": versions,
        "profile": profile,
        "seed": seed,
        "complete": complete,
        "outcomes": dict(Counter(v.outcome for v in verdicts)),
        "verdicts": [
            {
                "clause": v.label,
                "implementation": v.implementation,
                "outcome": v.outcome,
                "reason": v.reason,
                "seen": v.seen,
                "case": v.case,
                "details": v.details,
                "repeat": v.repeat,
                "seconds": round(v.seconds, 3),
            }
            for v in verdicts
        ],
    }


def cell(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """A cell of the table, and its kind: the worst thing in it decides."""
    counts = Counter(v.outcome for v in verdicts)
    bad = counts["fail"] + counts["unexpected pass"]
    judged = len(verdicts) - counts["not supported"]
    if bad:
        return f"{bad} of {judged} FAIL", "fail"
    if not judged:
        return "not supported", "unsupported"
    if counts["deviation"]:
        return f"{counts['pass']} pass, {counts['deviation']} dev.", "deviation"
    return f"{counts['pass']} pass", "pass"


def rows(verdicts: Sequence[Verdict]) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Implementations, and for every clause family its cells."""
    names = list(dict.fromkeys(v.implementation for v in verdicts))
    table = []
    for family, title in FAMILIES.items():
        of_family = [v for v in verdicts if v.label.split("-")[1] == family]
        if of_family:
            cells = [cell([v for v in of_family if v.implementation == name]) for name in names]
            table.append((f"{family} {title}", cells))
    return names, table


def print_report(console: Console, verdicts: Sequence[Verdict], *, details: bool = True) -> None:
    """The table, declared deviations, then every failure with what is needed to repeat it."""
    styles = {"fail": "bold red", "unsupported": "dim", "deviation": "yellow", "pass": "green"}
    names, table = rows(verdicts)
    per_line = max(1, (console.width - 30) // 18)
    for start in range(0, len(names), per_line):
        shown = Table(title=None, show_lines=False)
        shown.add_column("clauses")
        for name in names[start : start + per_line]:
            shown.add_column(name, overflow="fold")
        for title, cells in table:
            shown.add_row(title, *(Text(text, styles[kind]) for text, kind in cells[start : start + per_line]))
        console.print(shown)
    deviations = [v for v in verdicts if v.outcome == "deviation"]
    if deviations and details:
        console.print(f"\n{len(deviations)} declared deviations, each seen in this run:", style="yellow")
        for v in deviations:
            console.print(Text(f"  {v.implementation} {v.label}: {v.reason}"))
    bad = [v for v in verdicts if v.bad]
    for v in bad:
        console.print(Text(f"\n{v.implementation}: " + v.lines()[0], "bold red"))
        for line in v.lines()[1:]:
            console.print(Text(f"  {line}"), soft_wrap=True)
    counts = Counter(v.outcome for v in verdicts)
    said = ", ".join(f"{n} {name}" for name, n in counts.items())
    console.print(
        Text(
            f"\n{len(names)} implementations, {len({v.label for v in verdicts})} clauses: {said}",
            "bold red" if bad else "bold",
        )
    )


def write_json(path: str, data: dict[str, Any]) -> None:
    """The data of :func:`summary`, whole or not at all."""
    _write(path, json.dumps(data, indent=1, allow_nan=True) + "\n")


def write_html(path: str, data: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """A page without scripts that asks for nothing from elsewhere; everything it quotes is escaped."""
    names, table = rows(verdicts)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{html.escape(title)}</th>"
        + "".join(f'<td class="{kind}">{html.escape(text)}</td>' for text, kind in cells)
        + "</tr>"
        for title, cells in table
    )
    about = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    machine = data["machine"]
    unfinished = "" if data["complete"] else "<p><strong>The run was interrupted; this is what was known.</strong></p>"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Conformance of indirect attention</title><style>{_STYLE}</style></head><body>
<h1>Conformance of indirect attention</h1>{unfinished}
<p>{html.escape(data["date"])}, profile {html.escape(data["profile"])}, seed {data["seed"]};
{html.escape(machine["system"])}, {machine["cpus"]} processors, Python {html.escape(machine["python"])}.<br>
{html.escape(about)}.</p>
<div class="wide"><table><thead><tr><th>clauses</th>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p>Each number counts clauses; "dev." are deviations that the adapter declares, and that showed in this run.</p>
{_sections(verdicts)}
</body></html>
"""
    _write(path, page)


def _sections(verdicts: Sequence[Verdict]) -> str:
    titles = (("Failures", ("fail", "unexpected pass")), ("Declared deviations", ("deviation",)))
    parts = []
    for title, outcomes in titles:
        chosen = [v for v in verdicts if v.outcome in outcomes]
        blocks = "".join(
            f"<details{' open' if v.bad else ''}><summary>{html.escape(v.implementation)} {v.label}: "
            f"{html.escape(CLAUSES[v.label].title)}</summary><pre>{html.escape(chr(10).join(v.lines()[1:]))}</pre></details>"
            for v in chosen
        )
        parts.append(f"<h2>{title} ({len(chosen)})</h2>{blocks}")
    return "".join(parts) + f"<h2>Clause by clause</h2>{_matrix(verdicts)}"


def _matrix(verdicts: Sequence[Verdict]) -> str:
    """Every clause with its statement, and what it says of each implementation."""
    names = list(dict.fromkeys(v.implementation for v in verdicts))
    found = {(v.label, v.implementation): cell([v]) for v in verdicts}
    words = {"pass": "pass", "fail": "FAIL", "deviation": "dev.", "unsupported": "-"}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = ""
    for label in sorted({v.label for v in verdicts}):
        kinds = [found[label, name][1] if (label, name) in found else "unsupported" for name in names]
        cells = "".join(f'<td class="{kind}">{words[kind]}</td>' for kind in kinds)
        body += f"<tr><th>{label}</th><td>{html.escape(CLAUSES[label].title)}</td>{cells}</tr>"
    return f'<div class="wide"><table><tr><th>label</th><th>statement</th>{head}</tr>{body}</table></div>'


def _write(path: str, text: str) -> None:
    """To a file beside it first, so that an interrupted run leaves the old report or the new one."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)


_STYLE = """
:root { color-scheme: light dark; --pass: #1a7f37; --fail: #cf222e; --dev: #9a6700; --line: #8885; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th:first-child { white-space: nowrap; }
td.pass { color: var(--pass); } td.fail { color: var(--fail); font-weight: bold; } td.deviation { color: var(--dev); }
td.unsupported { opacity: .6; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { :root { --pass: #3fb950; --fail: #ff7b72; --dev: #d29922; } }
"""
