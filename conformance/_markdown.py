"""A table for a README: clause families by implementation, and levels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ._files import clean, write_whole
from ._summary import levels, rows
from ._verdict import Verdict

__all__ = ["markdown", "write_markdown"]

# All that GitHub's Markdown, HTML in it included, could take for more than text.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&:@$])")
_MARKS = {"fail": "❌", "deviation": "⚠️", "pass": "✅", "unsupported": "\u2013"}
_STATUS = {"fail": "fail", "deviation": "pass, with declared deviations", "pass": "pass"}


def write_markdown(path: str, data: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """The table of a run in GitHub's Markdown, whole or not at all.

    Parameters
    ----------
    path : str
    data : dict
        Of :func:`summary`.
    verdicts : sequence of Verdict
        Those of the run.
    """
    write_whole(path, markdown(data, verdicts))


def markdown(data: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The text of :func:`write_markdown`."""
    names, table = rows(verdicts)
    lines = [_row(["clauses", *map(_quote, names)]), _row(["---"] * (len(names) + 1))]
    for title, cells in table:
        lines.append(_row([_quote(title), *(f"{_MARKS[kind]} {_quote(text)}" for text, kind in cells)]))
    core = [f"**{_core(verdicts, name)}**" for name in names]
    lines.append(_row(["**level core**", *core]))
    lines.append(_row(["other levels claimed", *(_claimed(verdicts, name) for name in names)]))
    lines.append(_row(["not claimed", *(_unclaimed(verdicts, name) for name in names)]))
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    about = [
        f"Judged {data['date'][:10]} by `ia-core conform`, profile {data['profile']}, seed {data['seed']},",
        f"{data['clauses']['judged']} of {data['clauses']['known']} clauses; {_quote(versions)}.",
        "Numbers count clauses; *dev.* are deviations that are declared and that showed.",
    ]
    if not data["complete"]:
        about.insert(0, "**The run was not finished; this is what was known.**")
    return "\n".join([*lines, "", *about]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quote(text: str) -> str:
    """Text as it stands: on one line, with nothing in it that Markdown would read."""
    return _SPECIAL.sub(r"\\\1", " ".join(clean(text).split()))


def _levels(verdicts: Sequence[Verdict], name: str) -> list[Any]:
    return levels(v for v in verdicts if v.implementation == name)


def _core(verdicts: Sequence[Verdict], name: str) -> str:
    core = [level for level in _levels(verdicts, name) if level.name == "core"]
    if not core:
        return "not asked for"
    return f"{_STATUS.get(core[0].status, core[0].status)} {core[0].passed}/{core[0].judged}"


def _claimed(verdicts: Sequence[Verdict], name: str) -> str:
    shown = [
        f"{_quote(level.name)} {level.text}{' ❌' if level.status == 'fail' else ''}"
        for level in _levels(verdicts, name)
        if level.name != "core" and level.status != "not claimed"
    ]
    return ", ".join(shown) or "none"


def _unclaimed(verdicts: Sequence[Verdict], name: str) -> str:
    return ", ".join(_quote(level.name) for level in _levels(verdicts, name) if level.status == "not claimed") or "none"
