"""Colours and style sheet of the page; a test holds their contrasts."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["HEAT", "STYLE", "TEXT", "Heat", "heat_of"]


class Heat(NamedTuple):
    """A step of the scale: margins up to here, in words, its colour on a light page and on a dark one."""

    limit: float
    words: str
    light: str
    dark: str


# Blue within the bound, orange and red beyond it: told apart with any colour vision, and each way darker with size.
HEAT = (
    Heat(0.0, "0, exact", "#ffffff", "#15181d"),
    Heat(0.01, "to 0.01", "#e9f2fb", "#14263a"),
    Heat(0.1, "to 0.1", "#cbe0f5", "#173655"),
    Heat(1.0, "to 1, the bound", "#a3c9ee", "#1c4a78"),
    Heat(10.0, "to 10", "#fde3c4", "#4a3110"),
    Heat(1e3, "to 1000", "#fcc48b", "#643c0c"),
    Heat(1e6, "to 1e6", "#f7a365", "#80430a"),
    Heat(math.inf, "beyond, inf", "#f0867a", "#8c2424"),
)
TEXT = {"light": "#15181d", "dark": "#eceff3"}  # on every one of those, and on the page


def heat_of(margin: float) -> int:
    """The step of a margin; nan is as far off as infinity."""
    return next((step for step, heat in enumerate(HEAT) if margin <= heat.limit), len(HEAT) - 1)


def _colours(theme: str) -> str:
    heat = " ".join(f"--h{step}: {getattr(one, theme)};" for step, one in enumerate(HEAT))
    rest = {
        "light": "--page: #fff; --soft: #f4f6f8; --quiet: #59616b; --line: #d3d8de; --link: #0b57a4;"
        " --pass: #1a6b2f; --fail: #b3201f; --dev: #8a5200;",
        "dark": "--page: #0e1116; --soft: #191d24; --quiet: #a0a8b3; --line: #343b45; --link: #7cb8f5;"
        " --pass: #57c46d; --fail: #ff8a80; --dev: #e3a93c;",
    }
    return f"--text: {TEXT[theme]}; {rest[theme]} {heat}"


_HEAT_CELLS = "\n".join(f".h{step} {{ background: var(--h{step}); }}" for step in range(len(HEAT)))

# .wide is a positioned box because .unseen words in its far columns would otherwise widen the page itself.
STYLE = f"""
:root {{ color-scheme: light dark; {_colours("light")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours("dark")} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 90rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.15rem; margin: 2.25rem 0 .5rem; }}
p {{ max-width: 50rem; margin: .4rem 0; }} .quiet {{ color: var(--quiet); }} a {{ color: var(--link); }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 1px; }}
.verdict {{ font-size: 1.1rem; font-weight: 600; }}
.pass {{ color: var(--pass); }} .fail {{ color: var(--fail); font-weight: 700; }} .deviation {{ color: var(--dev); }}
.unsupported {{ color: var(--quiet); }}
.wide {{ position: relative; overflow-x: auto; max-width: 100%; }} .tall {{ max-height: 85vh; overflow: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top; }}
thead th, tbody th {{ background: var(--soft); font-weight: 600; }}
.wide td {{ min-width: 5rem; }} .levels td + td {{ min-width: 14rem; }}
tbody th {{ overflow-wrap: anywhere; min-width: 7rem; }}
.map {{ border-collapse: separate; border-spacing: 0; font-size: .875rem; }}
.map th, .map td {{ border-width: 0 1px 1px 0; padding: .15rem .35rem; }}
.map thead {{ position: sticky; top: 0; z-index: 2; }} .map thead tr + tr th {{ font-weight: 400; }}
.map thead th {{ vertical-align: bottom; max-width: 9rem; overflow-wrap: anywhere; }}
.map th:first-child {{ position: sticky; left: 0; z-index: 1; white-space: nowrap; }}
.map thead tr + tr th:first-child {{ position: static; }}
.map td {{ min-width: 3.6rem; text-align: right; white-space: nowrap; }}
.map .statement {{ min-width: 17rem; max-width: 24rem; text-align: left; white-space: normal; }}
.map td.first {{ border-left: 1px solid var(--quiet); }}
.map td a {{ color: inherit; }} .map td.bad {{ box-shadow: inset 0 0 0 2px var(--fail); font-weight: 700; }}
.map td.dev {{ box-shadow: inset 0 0 0 1px var(--dev); }}
.map .family > * {{ background: var(--soft); padding-top: .6rem; }}
.map .family th {{ white-space: normal; overflow-wrap: normal; hyphens: auto; }}
{_HEAT_CELLS}
.legend {{ display: flex; flex-wrap: wrap; gap: .3rem .9rem; padding: 0; margin: .5rem 0; list-style: none;
  font-size: .875rem; }}
.legend .box {{ display: inline-block; min-width: 1.6rem; height: 1.3rem; line-height: 1.3rem; text-align: center;
  margin-right: .35rem; vertical-align: bottom; border: 1px solid var(--line); }}
details {{ border: 1px solid var(--line); border-radius: 6px; margin: .25rem 0; background: var(--soft); }}
summary {{ cursor: pointer; padding: .3rem .75rem; overflow-wrap: anywhere; }}
details > div {{ padding: 0 .75rem .5rem; background: var(--page); border-top: 1px solid var(--line);
  border-radius: 0 0 6px 6px; }}
article {{ padding: .6rem 0; }} article + article {{ border-top: 1px solid var(--line); }}
article:target {{ outline: 3px solid var(--link); outline-offset: 2px; }}
h3 {{ font-size: 1rem; margin: 1.1rem 0 .3rem; }} h4 {{ font-size: 1rem; margin: 0; }}
dl {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .9rem; margin: .3rem 0; }}
dt {{ color: var(--quiet); }} dd {{ margin: 0; overflow-wrap: anywhere; }}
code {{ font: .875rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
.unseen {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }}
@media (max-width: 50rem) {{
  .map .statement {{ display: none; }} dl {{ grid-template-columns: minmax(0, 1fr); gap: 0; }}
  dd {{ margin-bottom: .35rem; }} body {{ padding: 1rem .75rem 3rem; }}
  .levels, .levels tbody, .levels tr, .levels td, .levels tbody th {{ display: block; border-width: 0; min-width: 0; }}
  .levels {{ border: 1px solid var(--line); }} .levels thead {{ display: none; }}
  .levels td::before {{ content: attr(data-head) ": "; color: var(--quiet); font-weight: 400; }}
}}
@media print {{ .wide, .tall {{ overflow: visible; max-height: none; }} }}
"""
