"""The reports of a run: their form, what they quote, and what they group."""

from __future__ import annotations

import dataclasses
import html.parser
import importlib.resources
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ia_core import indirect_attention
from ia_core.conformance import CLAUSES, Implementation, judge
from ia_core.conformance._badge import _COLOURS, badge
from ia_core.conformance._html import page
from ia_core.conformance._html_style import HEAT, TEXT, heat_of
from ia_core.conformance._markdown import markdown
from ia_core.conformance._report import print_report, summary, write_json
from ia_core.conformance._summary import FORMAT, cell, distinct, groups, levels, plain, short
from ia_core.conformance._verdict import OUTCOMES, Verdict
from ia_core.conformance.plugin import ConformanceRun

NASTY = "<img src=x onerror=alert(1)>|`a`\"'&amp; [x](y) \x1b[31m \ud800 \u202e ]]>"
CORE = [label for label, clause in sorted(CLAUSES.items()) if clause.level == "core"]
DETAILS = {"index": (0, 1), "got": math.inf, "wanted": math.nan, "bound": 1e-9, "error_in_bounds": math.inf}


def verdict(label: str = "IA-F-01", outcome: str = "pass", name: str = "mine", **fields: Any) -> Verdict:
    return Verdict(label, name, outcome, **{"dtype": "float64", "margin": 0.25, "examples": 6, **fields})


def failing(label: str = "IA-F-01", **fields: Any) -> Verdict:
    said = {"reason": NASTY, "case": NASTY, "repeat": NASTY, "details": DETAILS, "margin": math.inf, **fields}
    return verdict(label, "fail", **said)


def told(verdicts: Sequence[Verdict], **about: Any) -> dict[str, Any]:
    said = {"versions": {"numpy": "2.0"}, "profile": "full", "seed": 3, "complete": True, "limits": "8 GiB", **about}
    return summary(verdicts, **said)


# One of everything, with text in every place that an implementation or its author may fill.
MIXED = [
    verdict(),
    verdict("IA-F-01", dtype="float32", margin=1e-4),
    failing("IA-F-02"),
    failing("IA-F-02", name=NASTY, details={"printed": NASTY, "saved": NASTY}, margin=None),
    verdict("IA-F-03", "deviation", reason=NASTY, seen=NASTY, case=NASTY, margin=2e5),
    verdict("IA-P-01", "unexpected pass", reason=NASTY),
    verdict("IA-F-06", "not supported", reason="it does not claim mask", dtype="", margin=None),
    verdict("IA-F-04", margin=math.nan),
]


def printed(verdicts: Sequence[Verdict], width: int = 150) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=width), verdicts)
    return out.getvalue()


# JSON


def schema() -> dict[str, Any]:
    text = importlib.resources.files("ia_core.conformance").joinpath("schemas/report.schema.json").read_text("utf-8")
    return json.loads(text)


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@pytest.mark.parametrize("verdicts", [MIXED, [], MIXED[:1], [failing(details={}, margin=-math.inf)]])
def test_json_obeys_its_schema(tmp_path: Path, verdicts: list[Verdict]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    write_json(str(tmp_path / "r.json"), told(verdicts))
    data = json.loads((tmp_path / "r.json").read_text("utf-8"), parse_constant=no_constant)
    jsonschema.validate(data, schema(), cls=jsonschema.Draft202012Validator)
    assert data["format"] == FORMAT == schema()["properties"]["format"]["const"]
    assert len(data["verdicts"]) == len(verdicts)


@pytest.mark.parametrize(
    ("field", "value"),
    [("outcome", "passed"), ("margin", "Infinity"), ("clause", "F-01"), ("dtype", "float8"), ("seconds", -1), ("x", 1)],
)
def test_the_schema_refuses_what_is_wrong(field: str, value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = told([verdict()])
    data["verdicts"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema(), cls=jsonschema.Draft202012Validator)


def test_schema_and_code_name_the_same_things() -> None:
    found = schema()["$defs"]
    assert tuple(found["outcome"]["enum"]) == OUTCOMES
    assert set(found["verdict"]["properties"]) == set(told([verdict()])["verdicts"][0])
    said = {field.name for field in dataclasses.fields(Verdict)} - {"failing"}
    assert set(found["verdict"]["properties"]) - {"title"} == (said - {"label"}) | {"clause"}


def test_numbers_that_json_lacks() -> None:
    given = {"a": [math.inf, -math.inf, math.nan], "b": np.float32(0.5), "c": np.arange(2), "d": True, "e": {1}}
    assert plain(given) == {"a": ["inf", "-inf", "nan"], "b": 0.5, "c": [0, 1], "d": True, "e": "{1}"}
    found = told([failing()])["verdicts"][0]
    assert (found["details"]["got"], found["details"]["wanted"], found["margin"]) == ("inf", "nan", "inf")


def test_a_judged_run_is_valid_too(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    wrong = Implementation(lambda q, k, v, **kw: np.full(q.shape[:-1] + v.shape[-1:], np.nan), "wrong")
    verdicts = [judge(wrong, CLAUSES[label]) for label in ("IA-F-01", "IA-F-10", "IA-B-01")]
    assert [v.outcome for v in verdicts] == ["fail", "pass", "not supported"]
    jsonschema.validate(told(verdicts), schema(), cls=jsonschema.Draft202012Validator)


# HTML


class Tags(html.parser.HTMLParser):
    """Balanced tags, and every element and attribute that there is."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.seen


@pytest.mark.parametrize("verdicts", [MIXED, [], [failing()], [verdict()]])
def test_the_page_is_whole_and_asks_for_nothing(verdicts: list[Verdict]) -> None:
    text = page(told(verdicts, versions={NASTY: NASTY}, limits=NASTY), verdicts)
    seen = tags(text)
    assert not {"script", "img", "iframe", "link", "object", "embed", "form", "base"} & {tag for tag, _ in seen}
    for _, attributes in seen:
        assert not any(name.startswith("on") or name in ("src", "style", "action") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in text and "@import" not in text and "://" not in text
    assert "default-src 'none'" in text
    text.encode("utf-8")
    assert not set(text) & {"\x1b", "\u202e"}


def test_links_of_the_map_lead_to_cases() -> None:
    seen = tags(page(told(MIXED), MIXED))
    targets = {attributes["href"] for tag, attributes in seen if tag == "a"}
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(targets) == 4 and {target[1:] for target in targets if target} <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_page_can_be_used_by_keyboard_and_narrow() -> None:
    seen = tags(page(told(MIXED), MIXED))
    regions = [attributes for _, attributes in seen if attributes.get("role") == "region"]
    assert regions and all(one["tabindex"] == "0" and one["aria-label"] for one in regions)
    assert sum(tag == "summary" for tag, _ in seen) == sum(tag == "details" for tag, _ in seen) > 3
    viewport = next(attributes for _, attributes in seen if attributes.get("name") == "viewport")
    assert "width=device-width" in str(viewport["content"])
    assert all("scope" in attributes for tag, attributes in seen if tag == "th")


def test_the_map_shows_numbers_not_colour_alone() -> None:
    text = page(told(MIXED), MIXED)
    assert '<td class="h3 first">0.25</td>' in text
    assert '<td class="h1">1e-4</td>' in text
    assert re.search(r'<td class="h7 bad first"><a href="#v2">inf ✗<span class="unseen"> fail</span></a></td>', text)
    assert re.search(r'<td class="h6 dev first"><a href="#v4">2e5 †', text)
    assert all(heat.words in text for heat in HEAT)


def contrast(one: str, other: str) -> float:
    """As WCAG defines it."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_and_steps_of_the_scale() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for heat in HEAT:
        assert contrast(heat.light, TEXT["light"]) >= 4.5 and contrast(heat.dark, TEXT["dark"]) >= 4.5
    assert all(contrast(colour, "#ffffff") >= 4.5 for colour in _COLOURS.values())
    found = [heat_of(x) for x in (0, 0.01, 0.05, 1.0, 1.0001, 500, 1e4, 1e9, math.inf, math.nan)]
    assert found == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


def test_an_interrupted_run_says_so_everywhere() -> None:
    data = told(MIXED[:2], complete=False)
    assert "was not finished" in page(data, MIXED[:2]) and "was not finished" in markdown(data, MIXED[:2])
    assert "not all judged" in badge(data, MIXED[:2])
    assert data["complete"] is False


# Badge and Markdown


def said_by(text: str) -> tuple[list[str], str, str]:
    """The words, the sentence for screen readers, and the colour of the right half."""
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    words = [str(one.text) for one in root.iter(f"{space}text")]
    title = root.find(f"{space}title")
    assert title is not None and root.get("role") == "img" and root.get("aria-labelledby") == title.get("id")
    return words, str(title.text), [str(one.get("fill")) for one in root.iter(f"{space}rect")][-1]


@pytest.mark.parametrize(
    ("change", "words", "kind"),
    [
        ({}, f"core {len(CORE)}/{len(CORE)}", "pass"),
        ({CORE[0]: "deviation"}, f"core {len(CORE) - 1}/{len(CORE)}", "deviation"),
        ({CORE[0]: "fail", CORE[1]: "deviation"}, f"core {len(CORE) - 2}/{len(CORE)}", "fail"),
        ({CORE[0]: "unexpected pass"}, f"core {len(CORE) - 1}/{len(CORE)}", "fail"),
        ({CORE[0]: "not supported"}, f"core {len(CORE) - 1}/{len(CORE) - 1}", "pass"),
        ({CORE[0]: None}, f"core {len(CORE) - 1}/{len(CORE)}, not all judged", "unknown"),
        ({"IA-F-06": "fail"}, f"core {len(CORE)}/{len(CORE)}, 1 other failed", "fail"),
        ({"IA-F-06": "deviation"}, f"core {len(CORE)}/{len(CORE)}", "deviation"),
        ({"IA-F-06": "not supported"}, f"core {len(CORE)}/{len(CORE)}", "pass"),
        (dict.fromkeys(CORE), "not judged", "unknown"),
    ],
)
def test_badge(change: dict[str, str | None], words: str, kind: str) -> None:
    outcomes = {**dict.fromkeys(CORE, "pass"), **change}
    verdicts = [verdict(label, outcome) for label, outcome in outcomes.items() if outcome is not None]
    found, title, colour = said_by(badge(told(verdicts), verdicts))
    assert (found, colour) == (["indirect attention", words], _COLOURS[kind])
    assert "of level core" in title


def test_badge_of_hostile_names_is_well_formed_and_as_wide_as_its_words() -> None:
    text = badge(told(MIXED), MIXED)
    assert "<img" in said_by(text)[1]
    root = ET.fromstring(text)
    widths = [float(str(one.get("textLength"))) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert float(str(root.get("width"))) == pytest.approx(sum(widths) + 20, abs=1)
    assert widths[0] == pytest.approx(95.5)  # of "indirect attention" in DejaVu Sans at 11 px


def test_markdown_is_one_table_whatever_it_quotes() -> None:
    text = markdown(told(MIXED, versions={NASTY: NASTY}), MIXED)
    table = [line for line in text.splitlines() if line.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert bars == {4}  # three columns: clauses and two implementations
    assert not re.search(r"(?<!\\)<", text) and not re.search(r"(?<!\\)\[", text)
    assert "| F forward semantics | ❌ 1 of 4 FAIL | ❌ 1 of 1 FAIL |" in text
    assert "**level core**" in text and "| not claimed | mask |" in text


# Words


def test_families_and_levels_take_the_worst_of_the_dtypes() -> None:
    found = [verdict(), verdict(dtype="float32", outcome="fail", reason="x"), verdict("IA-F-02")]
    assert cell(found) == ("1 of 2 FAIL", "fail")
    assert cell([verdict("IA-F-02"), verdict("IA-F-02", "not supported", dtype="")]) == ("1 pass", "pass")
    (core,) = levels(found)
    assert (core.name, core.status, core.passed, core.judged) == ("core", "fail", 1, 2)


def test_levels() -> None:
    absent = CLAUSES["IA-F-06"].unsupported(Implementation(indirect_attention, "mine", supports={"bias"}))
    assert absent == "it does not claim mask"  # the words by which a level is known to be unclaimed
    of_dtype = "it does not take float16"
    found = levels(
        [
            verdict("IA-S-01", "not supported", reason=absent),
            verdict("IA-F-08", "not supported", reason=of_dtype),
            verdict("IA-F-09", "deviation"),
            verdict("IA-F-01"),
        ]
    )
    assert [(level.name, level.status, level.text) for level in found] == [
        ("core", "pass", "1/1"),
        ("value_width", "deviation", "0/1"),
        ("lse", "not judged", "not judged"),
        ("mask", "not claimed", "not claimed"),
    ]


def test_failures_with_one_cause_are_shown_once() -> None:
    raised = "it raised TypeError: attention() got an unexpected keyword argument 'bias'"
    labels = CORE[:9]
    verdicts = [failing(label, reason=raised, details={}, case=f"Case({i})") for i, label in enumerate(labels)]
    (group,) = groups(verdicts)
    assert group.where == f"{', '.join(group.clauses)} in float64" and set(group.clauses) == set(labels)
    said = printed(verdicts)
    assert said.count(raised) == 1 and "the same in everything judged, 9 verdicts" in said
    assert all(label in said for label in labels)
    assert page(told(verdicts), verdicts).count("<summary>") == 3  # it, and the two lists at the end


def test_shapes_do_not_keep_a_cause_apart_and_other_implementations_do() -> None:
    shapes = ["its output must have shape (1, 2, 3); got (1, 2)", "its output must have shape (2, 1); got (4,)"]
    verdicts = [failing(CORE[i], reason=reason, details={}) for i, reason in enumerate(shapes)]
    assert len(groups(verdicts)) == 1
    assert len(groups([*verdicts, failing(reason=shapes[0], details={}, name="other")])) == 2


def test_wrong_numbers_are_grouped_over_dtypes_and_not_over_clauses() -> None:
    verdicts = [failing(label, dtype=dtype) for label in CORE[:3] for dtype in ("float64", "float32")]
    assert [len(group.verdicts) for group in groups(verdicts)] == [2, 2, 2]
    assert "also in float32: inf times the bound" in printed(verdicts)


def test_every_failure_can_be_repeated_however_many_there_are() -> None:
    verdicts = [failing(label, repeat=f"ia-core conform mine --clause {label}") for label in CORE]
    said = printed(verdicts)
    assert all(f"--clause {label}" in said for label in CORE)
    assert f"mine: {len(CORE) - 12} more, in short" in said


def test_the_terminal_gets_no_codes_and_no_markup() -> None:
    said = printed([*MIXED, failing(name="[red]x[/nothing]")])
    assert "[red]x[/nothing]" in said and "\x1b" not in said and "\u202e" not in said
    assert "\\x1b[31m" in said
    printed([], width=20)
    assert "more characters" in printed([failing(reason="x" * 10**6)])


def test_the_last_line() -> None:
    assert printed([verdict()]).splitlines()[-1] == f"1 implementation, 1 of {len(CLAUSES)} clauses: 1 pass"


def test_short_numbers_never_hide_a_failure() -> None:
    rng = np.random.default_rng(0)
    for number in 10.0 ** rng.uniform(-30, 30, 2000):
        text = short(float(number))
        assert len(text) <= 6 and float(text) >= number * (1 - 1e-5), (number, text)
        assert (float(text) > 1) == (number > 1 + 1e-5) or abs(number - 1) < 1e-4
    assert [short(x) for x in (999.2, 9.999, 1e-12, 9.5e20, math.nan)] == ["1000", "10.00", "1e-12", "1e21", "nan"]


def test_names_that_come_twice() -> None:
    assert distinct(["x", "x", "y", "x"]) == ["x", "x (2)", "y", "x (3)"]
    assert distinct(["x (2)", "x", "x"]) == ["x (2)", "x", "x (3)"]
    right = Implementation(indirect_attention, "same")
    wrong = Implementation(lambda q, k, v, **kw: q * 0, "same")
    run = ConformanceRun([right, wrong, right], [CLAUSES["IA-F-01"]], isolate=False)
    found = [run.judge(*item) for item in run.items]
    assert [(v.implementation, v.bad) for v in found] == [("same", False), ("same (2)", True), ("same (3)", False)]
