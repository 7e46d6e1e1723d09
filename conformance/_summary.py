"""What the reports of a run say, before it is put into words: families, levels, groups of failures."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ._clause import CLAUSES, FAMILIES
from ._files import clean
from ._verdict import Verdict

__all__ = [
    "FORMAT",
    "Group",
    "Level",
    "by_label",
    "cell",
    "distinct",
    "groups",
    "label_order",
    "levels",
    "names_of",
    "plain",
    "rows",
    "short",
    "summary",
    "title_of",
    "worst",
]

FORMAT = "ia-conformance-report/1"
# From the worst to the best: one bad dtype makes a clause bad, one good dtype makes it judged.
_WORST_FIRST = ("fail", "unexpected pass", "deviation", "pass", "not supported")
_NUMBER = r"-?\d[\d.]*(?:e[+-]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:, ?{_NUMBER})*(?:,(?=\)))?")


@dataclasses.dataclass(frozen=True)
class Level:
    """What became of the clauses that need the same features.

    Attributes
    ----------
    name : str
        ``core``, or the features with plus signs between them.
    status : str
        pass; deviation: what fails is declared; fail; not claimed; not judged: claimed, but nothing applied.
    passed, judged : int
        Clauses, each counted once whatever the number of dtypes.
    deviations : int
        Clauses that fail as declared.

    Examples
    --------
    >>> Level("core", "deviation", 40, 41, 1).text
    '40/41'
    """

    name: str
    status: str
    passed: int
    judged: int
    deviations: int

    @property
    def text(self) -> str:
        """Passed of judged, or why there is no such number."""
        return f"{self.passed}/{self.judged}" if self.judged else self.status


@dataclasses.dataclass(frozen=True)
class Group:
    """Verdicts of one implementation with one cause.

    Attributes
    ----------
    first : Verdict
        The one with the smallest case.
    verdicts : tuple of Verdict
        All of them, the first included.
    """

    first: Verdict
    verdicts: tuple[Verdict, ...]

    @property
    def clauses(self) -> list[str]:
        """The labels, each once."""
        return sorted({v.label for v in self.verdicts}, key=label_order)

    @property
    def where(self) -> str:
        """The labels, those together that show it in the same dtypes.

        Examples
        --------
        >>> found = [Verdict("IA-F-01", "x", "fail", dtype=d) for d in ("float32", "float16")]
        >>> Group(found[0], tuple(found)).where
        'IA-F-01 in float32, float16'
        """
        dtypes: dict[str, list[str]] = {label: [] for label in self.clauses}
        for v in self.verdicts:
            dtypes[v.label].append(v.dtype)
        alike: dict[str, list[str]] = {}
        for label, found in dtypes.items():
            alike.setdefault(", ".join(filter(None, found)), []).append(label)
        return "; ".join(", ".join(labels) + (f" in {found}" if found else "") for found, labels in alike.items())


def title_of(label: str) -> str:
    """The clause's statement; empty for a label that this version does not know."""
    return CLAUSES[label].title if label in CLAUSES else ""


def label_order(label: str) -> tuple[int, str]:
    """Families in the order of FAMILIES, labels by number."""
    family = label.split("-")[1] if label.count("-") > 1 else ""
    known = list(FAMILIES)
    return (known.index(family) if family in known else len(known), label)


def names_of(verdicts: Iterable[Verdict]) -> list[str]:
    """Implementations, in the order in which they were judged."""
    return list(dict.fromkeys(v.implementation for v in verdicts))


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, those that come again with a number behind them.

    Examples
    --------
    >>> distinct(["x", "y", "x", "x (2)", "x"])
    ['x', 'y', 'x (3)', 'x (2)', 'x (4)']
    """
    taken, given = set(names), set()
    found = []
    for name in names:
        number, one = 2, name
        while one in given or (one != name and one in taken):
            one, number = f"{name} ({number})", number + 1
        given.add(one)
        found.append(one)
    return found


def worst(verdicts: Iterable[Verdict]) -> str | None:
    """The outcome that decides, or None for no verdicts."""
    return min((v.outcome for v in verdicts), key=_WORST_FIRST.index, default=None)


def by_label(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts on every clause."""
    found: dict[str, list[Verdict]] = {}
    for v in verdicts:
        found.setdefault(v.label, []).append(v)
    return found


def cell(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """A cell of the table in words, and its kind (fail, deviation, pass, unsupported); it counts clauses.

    Examples
    --------
    >>> cell([Verdict("IA-F-01", "x", "pass", dtype="float32"), Verdict("IA-F-01", "x", "fail", dtype="float16")])
    ('1 of 1 FAIL', 'fail')
    """
    counts = Counter(worst(found) for found in by_label(verdicts).values())
    bad = counts["fail"] + counts["unexpected pass"]
    judged = counts.total() - counts["not supported"]
    if bad:
        return f"{bad} of {judged} FAIL", "fail"
    if not judged:
        return "not supported", "unsupported"
    if counts["deviation"]:
        return f"{counts['pass']} pass, {counts['deviation']} dev.", "deviation"
    return f"{counts['pass']} pass", "pass"


def rows(verdicts: Sequence[Verdict]) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Implementations, and for every clause family its cells."""
    names = names_of(verdicts)
    table = []
    for family, title in FAMILIES.items():
        of_family = [v for v in verdicts if v.label.split("-")[1] == family]
        if of_family:
            cells = [cell([v for v in of_family if v.implementation == name]) for name in names]
            table.append((f"{family} {title}", cells))
    return names, table


def levels(verdicts: Iterable[Verdict]) -> list[Level]:
    """The levels of one implementation: core, then those that it claims, then the others."""
    sorted_in: dict[str, dict[str, list[Verdict]]] = {}
    for label, found in by_label(verdicts).items():
        if label in CLAUSES:
            sorted_in.setdefault(CLAUSES[label].level, {})[label] = found
    order = {"not judged": 1, "not claimed": 2}
    return sorted(
        (_level(name, of_level) for name, of_level in sorted_in.items()),
        key=lambda level: (level.name != "core", order.get(level.status, 0), level.name),
    )


def _level(name: str, found: dict[str, list[Verdict]]) -> Level:
    counts = Counter(worst(of_label) for of_label in found.values())
    judged = counts.total() - counts["not supported"]
    if counts["fail"] or counts["unexpected pass"]:
        status = "fail"
    elif judged:
        status = "deviation" if counts["deviation"] else "pass"
    else:
        # The words are those of Clause.unsupported; a test holds the two together.
        unclaimed = any(v.reason.startswith("it does not claim") for of_label in found.values() for v in of_label)
        status = "not claimed" if unclaimed else "not judged"
    return Level(name, status, counts["pass"], judged, counts["deviation"])


def groups(verdicts: Iterable[Verdict]) -> list[Group]:
    """Verdicts that one cause explains.

    Numbers that differ from their truth are put together only within a clause, over its dtypes: that two clauses are
    both wrong by something says nothing of a cause. Everything else (what was raised, a form that is wrong, a
    declaration) goes by what it says, numbers in it left aside: a shape differs from case to case. What explains most
    clauses comes first.
    """
    found: dict[tuple[str, ...], list[Verdict]] = {}
    for v in verdicts:
        if v.outcome != "deviation" and v.details.get("error_in_bounds") is not None:
            cause = v.label
        else:
            cause = v.reason if v.outcome == "deviation" else _NUMBERS.sub("#", v.reason)
        found.setdefault((v.implementation, v.outcome, cause), []).append(v)
    together = [Group(min(of_one, key=lambda v: (not v.case, len(v.case))), tuple(of_one)) for of_one in found.values()]
    return sorted(together, key=lambda group: (-len(group.clauses), label_order(group.clauses[0])))


def short(number: float) -> str:
    """A margin in at most six characters, rounded up so that what exceeds 1 never reads as 1.

    Examples
    --------
    >>> [short(x) for x in (0.0, 0.0042, 0.31, 1.0, 1.0001, 41.3, 3.2e5, float("inf"))]
    ['0', '0.005', '0.31', '1.00', '1.01', '42', '4e5', 'inf']
    """
    if math.isnan(number) or math.isinf(number) or number == 0:
        return f"{number:g}"
    if 0.0005 <= number < 1000:
        places = 3 if number < 0.01 else 2 if number < 10 else 0
        # The decimal digits decide, not the binary number nearest to them: 0.31 * 100 is above 31.
        step = 10.0**places
        return f"{math.ceil(round(number * step, 6)) / step:.{places}f}"
    power = math.floor(math.log10(number))
    digit = math.ceil(round(number / 10.0**power, 6))
    power, digit = (power + 1, 1) if digit == 10 else (power, digit)
    return f"{digit}e{power}"


def plain(value: Any) -> Any:
    """A value that JSON can hold: not finite numbers become the words inf, -inf and nan, the unknown its text."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else f"{value:g}"
    if isinstance(value, dict):
        return {clean(str(name)): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return clean(str(value))


def summary(
    verdicts: Sequence[Verdict],
    *,
    versions: dict[str, str],
    profile: str,
    seed: int,
    complete: bool,
    limits: str = "",
) -> dict[str, Any]:
    """The run as plain data: when, where, with what, and every verdict.

    The form is stated by ``schemas/report.schema.json``. Only the verdicts of a finished run are a judgement:
    ``complete`` says whether it is one.
    """
    data = {
        "format": FORMAT,
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
        "limits": limits,
        "complete": complete,
        "clauses": {"judged": len({v.label for v in verdicts}), "known": len(CLAUSES)},
        "outcomes": dict(Counter(v.outcome for v in verdicts)),
        "implementations": [
            {
                "name": name,
                "levels": [
                    dataclasses.asdict(level) for level in levels(v for v in verdicts if v.implementation == name)
                ],
            }
            for name in names_of(verdicts)
        ],
        "verdicts": [_verdict(v) for v in verdicts],
    }
    found = plain(data)
    assert isinstance(found, dict)
    return found


def _verdict(v: Verdict) -> dict[str, Any]:
    return {
        "clause": v.label,
        "title": title_of(v.label),
        "implementation": v.implementation,
        "dtype": v.dtype,
        "outcome": v.outcome,
        "reason": v.reason,
        "seen": v.seen,
        "case": v.case,
        "details": v.details,
        "repeat": v.repeat,
        "margin": v.margin,
        "examples": v.examples,
        "seconds": round(v.seconds, 3),
    }
