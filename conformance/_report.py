"""What a run found, on the terminal; the other forms are beside this file and named here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._badge import write_badge
from ._clause import CLAUSES
from ._files import check_paths, clean, write_whole
from ._html import write_html
from ._markdown import write_markdown
from ._summary import Group, Level, groups, levels, names_of, rows, short, summary
from ._verdict import Verdict

__all__ = ["check_paths", "print_report", "summary", "write_badge", "write_html", "write_json", "write_markdown"]

_STYLES = {
    **{"fail": "bold red", "unsupported": "dim", "deviation": "yellow", "pass": "green"},
    **{"not claimed": "dim", "not judged": "dim"},
}
_WHOLE = 12  # failures of one implementation that are shown in full; the rest get a line each
_LONGEST = 4000  # characters of one line: a reason may quote a whole array


def print_report(console: Console, verdicts: Sequence[Verdict], *, details: bool = True) -> None:
    """Families, levels, declared deviations, then every failure with what is needed to repeat it."""
    names = names_of(verdicts)
    _print_families(console, verdicts)
    _print_levels(console, verdicts)
    deviations = [v for v in verdicts if v.outcome == "deviation"]
    if deviations and details:
        console.print(f"\n{_count(len(deviations), 'declared deviation')}, seen in this run:", style="yellow")
        for group in groups(deviations):
            _say(console, f"  {group.first.implementation} {group.where}: {group.first.reason}")
    for name in names:
        _print_failures(console, [v for v in verdicts if v.implementation == name])
    counts = Counter(v.outcome for v in verdicts)
    said = ", ".join(f"{n} {name}" for name, n in counts.items())
    judged = len({v.label for v in verdicts})
    of_all = "" if judged == len(CLAUSES) else f" of {len(CLAUSES)}"
    total = f"{_count(len(names), 'implementation')}, {judged}{of_all} clauses: {said or 'no verdicts'}"
    console.print(Text(f"\n{total}", "bold red" if any(v.bad for v in verdicts) else "bold"))


def write_json(path: str, data: dict[str, Any]) -> None:
    """The data of :func:`summary`, whole or not at all; ``schemas/report.schema.json`` states its form."""
    write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def _print_families(console: Console, verdicts: Sequence[Verdict]) -> None:
    names, table = rows(verdicts)
    per_line = max(1, (console.width - 30) // 18)
    for start in range(0, len(names), per_line):
        shown = Table(title=None, show_lines=False)
        shown.add_column("clauses")
        for name in names[start : start + per_line]:
            shown.add_column(Text(clean(name)), overflow="fold")
        for title, cells in table:
            shown.add_row(title, *(Text(text, _STYLES[kind]) for text, kind in cells[start : start + per_line]))
        console.print(shown)


def _print_levels(console: Console, verdicts: Sequence[Verdict]) -> None:
    shown = Table("levels", "core", "claimed", "not claimed")
    for column in shown.columns:
        column.overflow = "fold"
    for name in names_of(verdicts):
        found = levels(v for v in verdicts if v.implementation == name)
        core = [level for level in found if level.name == "core"]
        claimed = [level for level in found if level.name != "core" and level.status != "not claimed"]
        unclaimed = ", ".join(level.name for level in found if level.status == "not claimed")
        shown.add_row(
            Text(clean(name)),
            _core_text(core[0]) if core else Text("not asked for", "dim"),
            Text(", ").join(Text(f"{level.name} {_level_text(level)}", _STYLES[level.status]) for level in claimed),
            Text(unclaimed, "dim"),
        )
    if shown.row_count:
        console.print(shown)


def _core_text(level: Level) -> Text:
    words = {"fail": "FAIL", "deviation": "pass, declared deviations"}.get(level.status, level.status)
    return Text(f"{words} {level.passed}/{level.judged}" if level.judged else words, _STYLES[level.status])


def _level_text(level: Level) -> str:
    """A failure and a deviation in words too: not everybody sees the colour, and a file has none."""
    return level.text + {"fail": " FAIL", "deviation": " dev."}.get(level.status, "")


def _print_failures(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Of one implementation: what has one cause together, and the first few in full."""
    found = groups(v for v in verdicts if v.bad)
    judged = sum(v.outcome != "not supported" for v in verdicts)
    for group in found[:_WHOLE]:
        first = group.first
        heading, *lines = first.lines()
        console.print()
        _say(console, f"{first.implementation}: {heading}", "bold red")
        for line in lines:
            _say(console, f"  {line}")
        if len(group.verdicts) > 1:
            _say(console, f"  {_others(group, judged)}")
    if found[_WHOLE:]:
        first = found[0].first
        console.print()
        _say(console, f"{first.implementation}: {len(found) - _WHOLE} more, in short", "bold red")
        for group in found[_WHOLE:]:
            _say(console, f"  {_in_short(group)}")


def _others(group: Group, judged: int) -> str:
    first = group.first
    if first.details.get("error_in_bounds") is not None:  # one clause in several dtypes
        others = [(v.dtype, v.details["error_in_bounds"]) for v in group.verdicts if v is not first]
        return "also in " + ", ".join(f"{dtype}: {short(error)} times the bound" for dtype, error in others)
    if len(group.verdicts) == judged:
        return f"the same in everything judged, {judged} verdicts: {group.where}"
    return f"the same in {len(group.verdicts)} verdicts: {group.where}"


def _in_short(group: Group) -> str:
    first = group.first
    error = first.details.get("error_in_bounds")
    seen = first.reason[:200] if error is None else f"{short(error)} times the bound"
    return f"{group.where}: {first.outcome}, {seen}; repeat with: {first.repeat}"


def _say(console: Console, text: str, style: str = "") -> None:
    text = clean(text)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... and {len(text) - _LONGEST} more characters (--json has all)"
    console.print(Text(text, style), soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
