"""Judge an implementation by a clause."""

from __future__ import annotations

import dataclasses
import shlex
import time
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from ._case import cases
from ._clause import CLAUSES, Clause
from ._implementation import Failure, Implementation

__all__ = ["OUTCOMES", "PROFILES", "Verdict", "judge"]

# Drawn cases per clause; a fixed clause has one.
PROFILES = {"quick": 6, "full": 60}
OUTCOMES = ("pass", "fail", "not supported", "deviation", "unexpected pass")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a clause says of an implementation.

    Attributes
    ----------
    label, implementation : str
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

    @property
    def bad(self) -> bool:
        """Whether it makes the run fail."""
        return self.outcome in ("fail", "unexpected pass")

    def lines(self) -> list[str]:
        """What a person needs to see of it."""
        found = [f"{self.label} {CLAUSES[self.label].title}", f"{self.outcome}: {self.reason}"]
        found += [f"seen: {self.seen}"] if self.seen else []
        found += [f"on {self.case}"] if self.case else []
        return found + ([f"repeat with: {self.repeat}"] if self.repeat else [])


def judge(implementation: Implementation, clause: Clause, *, profile: str = "quick", seed: int = 0) -> Verdict:
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

    Returns
    -------
    Verdict

    Examples
    --------
    >>> from ia_core import indirect_attention
    >>> judge(Implementation(indirect_attention, "mine"), CLAUSES["IA-F-01"]).outcome
    'pass'
    """
    start = time.perf_counter()

    def verdict(outcome: str, reason: str = "", failure: Failure | None = None) -> Verdict:
        case = "" if failure is None or failure.case is None else repr(failure.case)
        details = {} if failure is None else failure.details
        repeat = _repeat(implementation, clause, profile, seed) if failure is not None else ""
        elapsed = time.perf_counter() - start
        seen = failure.text if failure is not None and outcome == "deviation" else ""
        return Verdict(clause.label, implementation.name, outcome, reason, case, details, repeat, elapsed, seen)

    why_not = clause.unsupported(implementation)
    if why_not:
        return verdict("not supported", why_not)
    declared = implementation.deviations.get(clause.label)
    failure = refute(implementation, clause, profile, seed, shrink=declared is None)
    if failure is None:
        if declared is None:
            return verdict("pass")
        return verdict("unexpected pass", f"declared as a deviation ({declared}), but it holds")
    if declared is not None:
        return verdict("deviation", declared, failure)
    return verdict("fail", failure.text, failure)


def refute(
    implementation: Implementation, clause: Clause, profile: str, draw_seed: int, *, shrink: bool = True
) -> Failure | None:
    """The smallest failure that Hypothesis finds, or None; without shrinking, the first."""
    if clause.fixed:
        try:
            clause.check(implementation, None)  # type: ignore[arg-type]
        except Failure as failure:
            return failure
        return None

    dtype = clause.dtype or implementation.dtypes[0]  # the first one claimed judges semantics
    drawn = cases(dtype, implementation.claims, few_shapes=implementation.library == "jax", **clause.draw)

    @seed(draw_seed)
    @settings(
        max_examples=PROFILES[profile],
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def check(case: Any) -> None:
        # Poisoned and infinite inputs are part of the cases; their warnings say nothing.
        with np.errstate(all="ignore"):
            clause.check(implementation, case)

    try:
        check()
    except Failure as failure:
        return failure
    return None


def check_deviations(implementation: Implementation) -> None:
    """Refuse deviations from clauses that do not exist (IA-X-21)."""
    unknown = sorted(set(implementation.deviations) - set(CLAUSES))
    if unknown:
        raise ValueError(f"`deviations` must name clauses of docs/spec.md; got {', '.join(unknown)} [IA-X-21]")


def _repeat(implementation: Implementation, clause: Clause, profile: str, seed: int) -> str:
    words = ["ia-core", "conform", implementation.target or implementation.name]
    words += ["--clause", clause.label, "--profile", profile, "--seed", str(seed)]
    words += ["--device", implementation.device] if implementation.device else []
    if ":" in implementation.target:
        words += ["--library", implementation.library] if implementation.library != "numpy" else []
        words += ["--layout", implementation.layout] if implementation.layout != "BHMD" else []
        words += ["--dtypes", ",".join(implementation.dtypes), "--supports", ",".join(sorted(implementation.claims))]
    return shlex.join(words)
