"""An SVG badge for a README: how much of level core holds."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from ._clause import CLAUSES
from ._files import clean, write_whole
from ._summary import by_label, names_of, worst
from ._verdict import Verdict

__all__ = ["badge", "write_badge"]

# White on each of these has a contrast of at least 4.5.
_COLOURS = {"pass": "#2a7a36", "deviation": "#9a5a00", "fail": "#c02626", "unknown": "#5f6670"}
_LEFT = "indirect attention"
# Advance widths of DejaVu Sans (those of Verdana), space to tilde, in tenths of a pixel at 11 pixels.
_WIDTHS = (
    *(35, 44, 51, 92, 70, 105, 86, 30, 43, 43, 55, 92, 35, 40, 35, 37, 70, 70, 70, 70, 70, 70, 70, 70, 70, 70, 37, 37),
    *(92, 92, 92, 58, 110, 75, 75, 77, 85, 70, 63, 85, 83, 32, 32, 72, 61, 95, 82, 87, 66, 87, 76, 70, 67, 81, 75, 109),
    *(75, 67, 75, 43, 37, 43, 92, 55, 55, 67, 70, 60, 70, 68, 39, 70, 70, 31, 31, 64, 31, 107, 70, 67, 70, 70, 45, 57),
    *(43, 70, 65, 90, 65, 65, 58, 70, 37, 70, 92),
)


def write_badge(path: str, data: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """The badge of a run, whole or not at all.

    Green only if every clause of level core that applies was judged and holds, and nothing else that is claimed fails;
    amber where the failures are declared deviations; red for any other failure; grey where something is not known.
    Where a run had several implementations a clause counts as passed if it holds for all that it applies to.

    Parameters
    ----------
    path : str
    data : dict
        Of :func:`summary`.
    verdicts : sequence of Verdict
        Those of the run.
    """
    write_whole(path, badge(data, verdicts))


def badge(data: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The text of :func:`write_badge`."""
    kind, said, title = _message(data, verdicts)
    left, right = _width(_LEFT), _width(said)
    left_box, right_box = left + 10, right + 10
    total = left_box + right_box
    title = html.escape(clean(title))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{total:.0f}" height="20"
 viewBox="0 0 {total:.0f} 20" role="img" aria-labelledby="ia-title"><title id="ia-title">{title}</title>
<clipPath id="ia-round"><rect width="{total:.0f}" height="20" rx="3"/></clipPath>
<g clip-path="url(#ia-round)"><rect width="{left_box:.1f}" height="20" fill="#454b54"/>
<rect x="{left_box:.1f}" width="{right_box + 1:.1f}" height="20" fill="{_COLOURS[kind]}"/></g>
<g fill="#fff" font-family="Verdana,'DejaVu Sans',Geneva,sans-serif" font-size="11">
<text x="5" y="14" textLength="{left:.1f}" lengthAdjust="spacingAndGlyphs">{_LEFT}</text>
<text x="{left_box + 5:.1f}" y="14" textLength="{right:.1f}" lengthAdjust="spacingAndGlyphs">{html.escape(said)}</text>
</g></svg>
"""


def _message(data: dict[str, Any], verdicts: Sequence[Verdict]) -> tuple[str, str, str]:
    """The kind that gives the colour, the words, and the sentence that a screen reader says."""
    found = {label: worst(of_label) for label, of_label in by_label(verdicts).items()}
    core = {label for label, clause in CLAUSES.items() if clause.level == "core"}
    unasked = len(core - set(found))
    judged = [found[label] for label in core & set(found) if found[label] != "not supported"]
    passed, deviations = judged.count("pass"), judged.count("deviation")
    elsewhere = [found[label] for label in set(found) - core]
    bad_elsewhere = elsewhere.count("fail") + elsewhere.count("unexpected pass")
    bad = len(judged) - passed - deviations
    said = f"core {passed}/{len(judged) + unasked}"
    if bad or bad_elsewhere:
        kind = "fail"
        said += f", {bad_elsewhere} other failed" if bad_elsewhere else ""
    elif unasked or not data["complete"] or not judged:
        kind, said = "unknown", f"{said}, not all judged" if verdicts else "not judged"
    else:
        kind = "deviation" if deviations or "deviation" in elsewhere else "pass"
    declared = deviations + elsewhere.count("deviation")
    title = (
        f"indirect attention, {', '.join(names_of(verdicts)) or 'nothing judged'}: {passed} of "
        f"{len(judged) + unasked} clauses of level core pass, {bad + bad_elsewhere} clauses failed in all, "
        f"{declared} with declared deviations; profile {data['profile']}, {data['date'][:10]}"
    )
    return kind, said, title


def _width(text: str) -> float:
    """In pixels; the widest for what the table does not have."""
    return sum(_WIDTHS[ord(char) - 32] if " " <= char <= "~" else 110 for char in text) / 10
