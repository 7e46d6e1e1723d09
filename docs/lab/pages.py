"""The live pages as HTML, with the figure that Python draws when the site is built in the place of the live one."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from . import alignment, explorer
from .controls import Slider, defaults

__all__ = ["PAGES", "alignment_page", "explorer_page"]

NOSCRIPT = (
    "<noscript>The controls are off: they need JavaScript. The figure is the one that was computed when the site was "
    "built.</noscript>"
)


def explorer_page(runtime: bool) -> str:
    """The noise threshold explorer."""
    answer = explorer.respond(defaults(explorer.SLIDERS))
    return _page(
        "explorer",
        runtime,
        f'<div class="lab-sliders">{_sliders(explorer.SLIDERS)}</div>',
        f'<div class="lab-figures" data-part="figure">{answer["figure"]}</div>'
        f'<div class="lab-table" data-part="table">{answer["table"]}</div>{_summary(answer)}',
    )


def alignment_page(runtime: bool) -> str:
    """The alignment lab."""
    answer = alignment.respond(defaults(alignment.SLIDERS) | alignment.START)
    words = "".join(
        f'<label>{label}<input type="text" name="{name}" value="{alignment.START[name]}" '
        f'maxlength="{alignment.LONGEST}" autocomplete="off" spellcheck="false"></label>'
        for name, label in (("x", "word x, for queries and keys"), ("y", "word y, for the values"))
    )
    knots = "".join(
        f'<input type="range" name="knots" data-list data-offset="{offset}" min="{-alignment.HIGHEST_KNOT}" '
        f'max="{alignment.HIGHEST_KNOT}" step="any" value="0" aria-label="bias at offset {offset}">'
        for offset in alignment.OFFSETS.tolist()
    )
    ticks = "".join(f"<span>{str(offset).replace('-', '−')}</span>" for offset in alignment.OFFSETS.tolist())
    controls = (
        f'<div class="lab-sliders">{words}{_sliders(alignment.SLIDERS)}</div>'
        f'<div class="lab-curve"><p class="lab-caption">bias f at the offset j − i: drag a knot, or focus it and '
        f'press an arrow key</p><div class="lab-knots" role="group" aria-label="bias at each offset">'
        f'<div data-part="curve">{answer["curve"]}</div>{knots}</div>'
        f'<div class="lab-ticks" aria-hidden="true">{ticks}</div>'
        f'<p><button type="button" class="lab-button" data-learn>let it learn</button> '
        f'<button type="button" class="lab-button" data-flatten>flatten</button></p></div>'
    )
    return _page(
        "alignment",
        runtime,
        controls,
        f'<div class="lab-maps" data-part="maps" tabindex="0" role="group" '
        f'aria-label="heat maps; arrow keys choose a cell">{answer["maps"]}</div>'
        f'<p class="lab-caption" data-cell aria-live="polite">Point at a cell, or focus the maps and press arrow keys, '
        f"to read its numbers.</p>"
        f'<div class="lab-table" data-part="strip">{answer["strip"]}</div>{_summary(answer)}',
    )


PAGES = {"explorer": explorer_page, "alignment": alignment_page}


def _page(name: str, runtime: bool, controls: str, shown: str) -> str:
    return (
        f'<div class="lab" data-lab="{name}" data-runtime="{"yes" if runtime else "no"}">'
        f'<p class="lab-status" data-status role="status">{NOSCRIPT}</p>'
        f'<form autocomplete="off" onsubmit="return false"><fieldset disabled><legend>Controls</legend>{controls}'
        f"</fieldset></form>{shown}</div>"
    )


def _sliders(sliders: Iterable[Slider]) -> str:
    return "".join(_slider(one) for one in sliders)


def _slider(one: Slider) -> str:
    return (
        f'<label>{escape(one.label)} <output data-of="{one.name}">{one.start:g}</output>'
        f'<input type="range" name="{one.name}" min="{one.low:g}" max="{one.high:g}" step="{one.step:g}" '
        f'value="{one.start:g}"></label>'
    )


def _summary(answer: dict[str, Any]) -> str:
    return (
        f'<p class="lab-summary" data-part="summary" data-as="text" aria-live="polite">{escape(answer["summary"])}</p>'
    )
