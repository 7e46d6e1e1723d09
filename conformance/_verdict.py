"""Judge an implementation by a clause."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ._case import Case
from ._clause import CLAUSES, Clause, observing, under_profile
from ._drawing import PROFILES, refute
from ._implementation import DTYPES, Failure, Implementation
from ._libraries import NotSupported, make_room

__all__ = ["OUTCOMES", "PROFILES", "Verdict", "check_deviations", "dtypes_of", "judge", "judge_case"]

OUTCOMES = ("pass", "fail", "not supported", "deviation", "unexpected pass")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a clause says of an implementation.

    Attributes
    ----------
    label, implementation : str
    dtype : str
        In which it was judged.
    outcome : str
        One of OUTCOMES. A deviation is a failure that the implementer declared; an unexpected pass is a declared
        deviation that did not show, which is an error in the declaration.
    reason : str
        What was seen; for a deviation, what the implementer declared.
    seen, case : str
        For a deviation, what was seen; the smallest call that shows it (the first, for a deviation).
    details : dict
        As in :class:`ia_core.conformance.Failure`.
    repeat : str
        The command that repeats it.
    seconds : float
    margin : float or None
        The largest error in units of its bound, of all comparisons of numbers; None where there was none.
    examples : int
        How many cases were tried, shrinking included.
    failing : Case or None
        The call itself.

    Examples
    --------
    >>> Verdict("IA-F-01", "mine", "fail").bad
    True
    """

    label: str
    implementation: str
    outcome: str
    reason: str = ""
    case: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    repeat: str = ""
    seconds: float = 0.0
    seen: str = ""
    dtype: str = ""
    margin: float | None = None
    examples: int = 0
    failing: Case | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def bad(self) -> bool:
        """Whether it makes the run fail."""
        return self.outcome in ("fail", "unexpected pass")

    def lines(self) -> list[str]:
        """What a person needs to see of it."""
        where = f" ({self.dtype})" if self.dtype else ""
        found = [f"{self.label} {CLAUSES[self.label].title}{where}", f"{self.outcome}: {self.reason}"]
        found += [f"seen: {self.seen}"] if self.seen else []
        found += [f"on {self.case}"] if self.case else []
        found += [f"{name}: {self.details[name]}" for name in ("printed", "saved") if name in self.details]
        return found + ([f"repeat with: {self.repeat}"] if self.repeat else [])


def dtypes_of(implementation: Implementation, clause: Clause, profile: str) -> list[str]:
    """In which dtypes a clause is judged: in the first that applies, or, in full, in all of them.

    Examples
    --------
    >>> from ia_core import indirect_attention
    >>> dtypes_of(Implementation(indirect_attention, "mine"), CLAUSES["IA-F-01"], "full")
    ['float64', 'float32']
    """
    apply = [dtype for dtype in implementation.dtypes if not clause.dtypes or dtype in clause.dtypes]
    apply = apply or list(implementation.dtypes)  # none: the verdict says so, once
    return apply if profile == "full" and not clause.once and not clause.unsupported(implementation) else apply[:1]


def judge(
    implementation: Implementation,
    clause: Clause,
    *,
    profile: str = "quick",
    seed: int = 0,
    dtype: str | None = None,
    shrink: bool = True,
) -> Verdict:
    """Try to refute a clause for an implementation.

    Parameters
    ----------
    implementation : Implementation
    clause : Clause
        One of ``CLAUSES.values()``.
    profile : str
        quick or full: how many cases are drawn.
    seed : int
        The same seed draws the same cases.
    dtype : str, optional
        By default the first that applies.
    shrink : bool
        Look for the smallest failing case, which takes longer.

    Returns
    -------
    Verdict

    Examples
    --------
    >>> from ia_core import indirect_attention
    >>> judge(Implementation(indirect_attention, "mine"), CLAUSES["IA-F-01"]).outcome
    'pass'
    """
    make_room(implementation.library)
    dtype = dtype or dtypes_of(implementation, clause, profile)[0]
    declared = _declared(implementation, clause, dtype)

    def look(tried: list[int]) -> Failure | None:
        return refute(implementation, clause, profile, seed, dtype, tried, shrink=shrink and declared is None)

    return _verdict_of(implementation, clause, profile, seed, dtype, look)


def judge_case(
    implementation: Implementation,
    clause: Clause,
    case: Case,
    *,
    profile: str = "quick",
    seed: int = 0,
    dtype: str | None = None,
) -> Verdict:
    """The verdict of a clause on one case alone, as it was drawn; in the dtype of the case unless told otherwise.

    Examples
    --------
    >>> from ia_core import indirect_attention
    >>> case = Case(*(np.ones((1, 2, 3)) for _ in range(3)))
    >>> judge_case(Implementation(indirect_attention, "mine"), CLAUSES["IA-F-01"], case).outcome
    'pass'
    """
    dtype = dtype or case.dtype
    arithmetic = "standard" if clause.strict else implementation.arithmetic.get(dtype, "standard")

    def look(tried: list[int]) -> Failure | None:
        tried[0] += 1
        with np.errstate(all="ignore"):
            try:
                clause.check(implementation, case.but(arithmetic=arithmetic))
            except Failure as failure:
                return failure
        return None

    return _verdict_of(implementation, clause, profile, seed, dtype, look)


def _declared(implementation: Implementation, clause: Clause, dtype: str) -> str | None:
    return implementation.deviations.get(f"{clause.label}[{dtype}]", implementation.deviations.get(clause.label))


def _verdict_of(
    implementation: Implementation,
    clause: Clause,
    profile: str,
    seed: int,
    dtype: str,
    look: Callable[[list[int]], Failure | None],
) -> Verdict:
    start = time.perf_counter()
    margins: list[float] = []
    tried = [0]

    def verdict(outcome: str, reason: str = "", failure: Failure | None = None) -> Verdict:
        failing = None if failure is None else failure.case
        return Verdict(
            clause.label,
            implementation.name,
            outcome,
            reason,
            case="" if failing is None else repr(failing),
            details={} if failure is None else failure.details,
            repeat="" if failure is None else _repeat(implementation, clause, profile, seed, dtype),
            seconds=time.perf_counter() - start,
            seen=failure.text if failure is not None and outcome == "deviation" else "",
            dtype=dtype,
            margin=max(margins, default=None),
            examples=tried[0],
            failing=failing,
        )

    why_not = clause.unsupported(implementation)
    if why_not:
        return verdict("not supported", why_not)
    declared = _declared(implementation, clause, dtype)
    with under_profile(profile, seed), observing(lambda comparison: margins.append(comparison.worst)):
        try:
            failure = look(tried)
        except NotSupported as error:
            return verdict("not supported", str(error))
    if failure is None:
        if declared is None:
            return verdict("pass")
        return verdict("unexpected pass", f"declared as a deviation ({declared}), but it holds")
    if declared is not None:
        return verdict("deviation", declared, failure)
    return verdict("fail", failure.text, failure)


def check_deviations(implementation: Implementation) -> None:
    """Refuse deviations from clauses, or in dtypes, that do not exist (IA-X-21)."""
    known = {f"{label}{dtype}" for label in CLAUSES for dtype in ("", *(f"[{name}]" for name in DTYPES))}
    unknown = sorted(set(implementation.deviations) - known)
    if unknown:
        raise ValueError(f"`deviations` must name clauses of docs/spec.md; got {', '.join(unknown)} [IA-X-21]")


def _repeat(implementation: Implementation, clause: Clause, profile: str, seed: int, dtype: str) -> str:
    words = ["ia-core", "conform", implementation.target or implementation.name]
    words += ["--clause", clause.label, "--profile", profile, "--seed", str(seed)]
    words += ["--device", implementation.device] if implementation.device else []
    function = ":" in implementation.target
    if function:
        words += ["--library", implementation.library] if implementation.library != "numpy" else []
        words += ["--layout", implementation.layout] if implementation.layout != "BHMD" else []
    words += ["--dtypes", dtype]
    words += ["--supports", ",".join(sorted(implementation.claims))] if function else []
    return shlex.join(words)
