"""The report as a page: no scripts, nothing from elsewhere, everything that it quotes escaped."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ._clause import FAMILIES
from ._files import clean, write_whole
from ._html_style import HEAT, STYLE, heat_of
from ._summary import Group, by_label, groups, label_order, levels, names_of, plain, rows, short, title_of, worst
from ._verdict import Verdict

__all__ = ["page", "write_html"]

_LONGEST = 20_000  # characters of one quotation; the JSON report has all
_DTYPES = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Nothing may run or be loaded, even if something unescaped slipped in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_html(path: str, data: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """The page of a run, whole or not at all.

    Parameters
    ----------
    path : str
    data : dict
        Of :func:`summary`.
    verdicts : sequence of Verdict
        Those of the run.
    """
    write_whole(path, page(data, verdicts))


def page(data: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The text of :func:`write_html`."""
    anchors = {id(v): f"v{number}" for number, v in enumerate(verdicts)}
    bad = groups(v for v in verdicts if v.bad)
    declared = groups(v for v in verdicts if v.outcome == "deviation")
    absent = groups(v for v in verdicts if v.outcome == "not supported")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Conformance of indirect attention</title><style>{STYLE}</style></head><body>
<header><h1>Conformance of indirect attention</h1>
{_headline(data, verdicts)}
{_about(data)}</header>
<main>
{_families(verdicts)}
{_levels(verdicts)}
{_map(verdicts, anchors)}
<h2 id="failures">Failures ({_told(bad)})</h2>
{_blocks(bad, anchors) or "<p>None.</p>"}
<h2 id="deviations">Declared deviations ({_told(declared)})</h2>
<p class="quiet">Failures that the adapter lists with a reason. Each was seen in this run: one that does not show is a
failure itself.</p>
{_blocks(declared, anchors) or "<p>None.</p>"}
<h2 id="unsupported">Not supported ({_told(absent)})</h2>
{_absent(absent)}
<h2 id="clauses">Clauses</h2>
{_statements(verdicts)}
</main></body></html>
"""


def _headline(data: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    names = names_of(verdicts)
    failing = {v.implementation for v in verdicts if v.bad}
    if not names:
        kind, said = "unsupported", "Nothing was judged."
    elif failing:
        kind, said = "fail", f"{len(failing)} of {_count(len(names), 'implementation')} failed."
    elif data["complete"]:
        kind, said = "pass", f"{_count(len(names), 'implementation')}: nothing failed that was not declared."
    else:
        kind, said = "unsupported", "Nothing had failed so far."
    unfinished = "" if data["complete"] else " The run was not finished; this is what was known."
    counts = ", ".join(f"{n} {outcome}" for outcome, n in Counter(v.outcome for v in verdicts).items())
    judged = data["clauses"]
    return (
        f'<p class="verdict {kind}">{said}{unfinished}</p>'
        f"<p>{judged['judged']} of {judged['known']} clauses, {_count(len(verdicts), 'verdict')}: "
        f"{counts or 'none'}.</p>"
    )


def _about(data: dict[str, Any]) -> str:
    machine = data["machine"]
    facts = [
        ("date", data["date"]),
        ("profile, seed", f"{data['profile']}, {data['seed']}"),
        ("limits", data["limits"]),
        ("machine", f"{machine['system']}, {machine['cpus']} processors"),
        ("versions", ", ".join([f"Python {machine['python']}", *(f"{n} {v}" for n, v in data["versions"].items())])),
    ]
    return f'<dl class="about">{_facts(facts)}</dl>'


def _families(verdicts: Sequence[Verdict]) -> str:
    """One row for an implementation: there may be twenty of them, families are few."""
    names, table = rows(verdicts)
    head = "".join(f'<th scope="col">{_esc(title)}</th>' for title in ("implementation", *(row[0] for row in table)))
    body = "".join(
        f'<tr><th scope="row">{_esc(name)}</th>'
        + "".join(f'<td class="{cells[at][1]}">{_family(*cells[at])}</td>' for _, cells in table)
        + "</tr>"
        for at, name in enumerate(names)
    )
    return (
        "<h2>Families of clauses</h2>"
        f"{_region('Families of clauses')}<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
        '<p class="quiet">Numbers count clauses, each by the worst of its dtypes; "dev." are declared '
        "deviations, &ndash; is not supported.</p>"
    )


def _family(text: str, kind: str) -> str:
    return '&ndash;<span class="unseen">not supported</span>' if kind == "unsupported" else _esc(text)


def _levels(verdicts: Sequence[Verdict]) -> str:
    body = ""
    for name in names_of(verdicts):
        found = levels(v for v in verdicts if v.implementation == name)
        core = "".join(_level(level.status, level.text, "") for level in found if level.name == "core")
        claimed = ", ".join(
            _level(level.status, level.text, level.name)
            for level in found
            if level.name != "core" and level.status != "not claimed"
        )
        unclaimed = ", ".join(_esc(level.name) for level in found if level.status == "not claimed")
        body += (
            f'<tr><th scope="row">{_esc(name)}</th><td data-head="core">{core or "not asked for"}</td>'
            f'<td data-head="claimed">{claimed or "none"}</td>'
            f'<td data-head="not claimed" class="unsupported">{unclaimed or "none"}</td></tr>'
        )
    head = "".join(f'<th scope="col">{one}</th>' for one in ("implementation", "core", "claimed", "not claimed"))
    return (
        f'<h2>Levels</h2>{_region("Levels")}<table class="levels"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _level(status: str, text: str, name: str) -> str:
    words = {"fail": " FAIL", "deviation": " dev."}.get(status, "") if name else f" {status}"
    words = "" if words.strip() == text else words
    kind = status if status in ("pass", "fail", "deviation") else "unsupported"
    return f'<span class="{kind}">{_esc(name)} {_esc(text)}{words}</span>'


def _map(verdicts: Sequence[Verdict], anchors: dict[int, str]) -> str:
    """The heat map: clauses by implementation and dtype."""
    columns = _columns(verdicts)
    top = "".join(f'<th scope="colgroup" colspan="{len(dtypes)}">{_esc(name)}</th>' for name, dtypes in columns.items())
    second = "".join(
        f'<th scope="col"><abbr title="{dtype or "any dtype"}">{_DTYPES.get(dtype, dtype) or "any"}</abbr></th>'
        for dtypes in columns.values()
        for dtype in dtypes
    )
    width = sum(len(dtypes) for dtypes in columns.values())
    found = by_label(verdicts)
    body, family = "", ""
    for label in sorted(found, key=label_order):
        key = label.split("-")[1]
        if key != family:
            family = key
            title = f"{key} {FAMILIES.get(key, '')}"
            # Cells of their own, so that the name stays in sight while the row is pushed along.
            rest = f'<td class="statement"></td><td colspan="{width}"></td>'
            body += f'<tr class="family"><th scope="row">{_esc(title)}</th>{rest}</tr>\n'
        body += f'<tr><th scope="row">{_esc(label)}</th><td class="statement">{_esc(title_of(label))}</td>'
        body += "".join(_cells(name, dtypes, found[label], anchors) for name, dtypes in columns.items()) + "</tr>\n"
    return f"""<h2 id="map">Error in units of the bound</h2>
<p>For every clause and dtype, the largest error of everything compared. Rounding explains what is at most 1.</p>
{_legend()}
{_region("Error in units of the bound", "wide tall")}<table class="map"><thead>
<tr><th rowspan="2" scope="col">clause</th><th class="statement" rowspan="2" scope="col">statement</th>{top}</tr>
<tr>{second}</tr></thead><tbody>
{body}</tbody></table></div>"""


def _columns(verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for name in names_of(verdicts):
        dtypes = {v.dtype for v in verdicts if v.implementation == name and v.outcome != "not supported"}
        order = list(_DTYPES)
        columns[name] = sorted(dtypes, key=lambda d: order.index(d) if d in order else len(order)) or [""]
    return columns


def _cells(name: str, dtypes: list[str], of_label: list[Verdict], anchors: dict[int, str]) -> str:
    of_name = [v for v in of_label if v.implementation == name]
    nowhere = worst(of_name) == "not supported"
    parts = []
    for at, dtype in enumerate(dtypes):
        found = [v for v in of_name if v.dtype == dtype and v.outcome != "not supported"]
        first = " first" if at == 0 else ""
        if found:
            parts.append(_cell(found[0], first, anchors))
        else:
            absent = '&ndash;<span class="unseen">not supported</span>' if nowhere else ""
            parts.append(f'<td class="unsupported{first}">{absent}</td>')
    return "".join(parts)


def _cell(v: Verdict, first: str, anchors: dict[int, str]) -> str:
    heat = "" if v.margin is None else f"h{heat_of(v.margin)}"
    text = "" if v.margin is None else short(v.margin)
    kind = "bad" if v.bad else "dev" if v.outcome == "deviation" else ""
    if kind:
        mark = "✗" if v.bad else "†"
        said = f'{text} {mark}<span class="unseen"> {v.outcome}</span>'.strip()
        said = f'<a href="#{anchors[id(v)]}">{said}</a>'
    else:
        said = text or '·<span class="unseen">passes, nothing to compare</span>'
    return f'<td class="{" ".join(filter(None, (heat, kind)))}{first}">{said}</td>'


def _legend() -> str:
    steps = "".join(f'<li><span class="box h{step}"></span>{_esc(heat.words)}</li>' for step, heat in enumerate(HEAT))
    marks = (
        ("✗", "fails (follow it to the case)"),
        ("†", "declared deviation"),
        ("·", "passes, no numbers compared"),
        ("&ndash;", "not supported"),
        ("", "empty: not judged in this dtype"),
    )
    signs = "".join(f'<li><span class="box">{mark}</span>{words}</li>' for mark, words in marks)
    return f'<ul class="legend">{steps}</ul><ul class="legend">{signs}</ul>'


def _blocks(found: Sequence[Group], anchors: dict[int, str]) -> str:
    """Every group unfoldable, under the implementation's name."""
    parts = []
    for name in names_of(group.first for group in found):
        of_name = [group for group in found if group.first.implementation == name]
        parts.append(f"<h3>{_esc(name)} ({_told(of_name)})</h3>\n")
        for group in of_name:
            ordered = sorted(group.verdicts, key=lambda v: label_order(v.label))
            articles = "".join(_article(v, anchors) for v in ordered)
            parts.append(f"<details><summary>{_heading(group)}</summary><div>{articles}</div></details>\n")
    return "".join(parts)


def _heading(group: Group) -> str:
    first = group.first
    error = first.details.get("error_in_bounds")
    kind = "deviation" if first.outcome == "deviation" else "fail"
    labels = f'<span class="{kind}">{_esc(group.where)}</span>'
    if error is None or first.outcome == "deviation":
        return f"{labels}: {_esc(_shorten(first.reason, 300))}"
    largest = max((v.details["error_in_bounds"] for v in group.verdicts), key=lambda e: math.inf if e != e else e)
    return f"{labels}: {_esc(title_of(first.label))}: <strong>{short(largest)}</strong> times the bound"


def _article(v: Verdict, anchors: dict[int, str]) -> str:
    where = f" ({v.dtype})" if v.dtype else ""
    named = {"got": "got", "wanted": "wanted", "bound": "bound", "error_in_bounds": "error in units of the bound"}
    details = {**v.details}
    facts = [("declared" if v.outcome == "deviation" else v.outcome, v.reason), ("seen", v.seen)]
    facts += [("worst element", str(plain(details.pop("index", ""))))]
    facts += [(words, str(plain(details.pop(name, "")))) for name, words in named.items()]
    facts += [("case", v.case)]
    facts += [(str(name), str(plain(value))) for name, value in details.items()]
    facts += [("repeat with", v.repeat)]
    quoted = _facts(facts, code={"case", "repeat with", "printed", "saved"})
    return (
        f'<article id="{anchors[id(v)]}"><h4>{_esc(v.label)} {_esc(title_of(v.label))}{where}</h4>'
        f"<dl>{quoted}</dl></article>"
    )


def _absent(found: Sequence[Group]) -> str:
    items = "".join(
        f"<li><strong>{_esc(group.first.implementation)}</strong>: {_esc(group.first.reason)}: "
        f"{_esc(', '.join(group.clauses))}</li>"
        for group in found
    )
    return f"<details><summary>What is not claimed, or does not apply</summary><div><ul>{items}</ul></div></details>"


def _statements(verdicts: Sequence[Verdict]) -> str:
    """What each clause says: the map has no room for it on a narrow screen."""
    facts = [(label, title_of(label)) for label in sorted(by_label(verdicts), key=label_order)]
    return f"<details><summary>What each clause states</summary><div><dl>{_facts(facts)}</dl></div></details>"


def _facts(facts: Iterable[tuple[str, str]], code: Iterable[str] = ()) -> str:
    shown = []
    for name, text in facts:
        if text:
            quoted = _esc(_shorten(text, _LONGEST))
            quoted = f"<code>{quoted}</code>" if name in code else quoted
            shown.append(f"<dt>{_esc(name)}</dt><dd>{quoted}</dd>")
    return "".join(shown)


def _region(name: str, kind: str = "wide") -> str:
    """The start of a part that scrolls: it takes the keyboard's focus, so that arrows move it."""
    return f'<div class="{kind}" role="region" aria-label="{name}" tabindex="0">'


def _told(found: Sequence[Group]) -> str:
    return str(sum(len(group.verdicts) for group in found))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} ... and {len(text) - length} more characters"


def _esc(text: str) -> str:
    return html.escape(clean(text))
