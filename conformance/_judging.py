"""What is asked of an implementation, in its own process or in this one: judge a clause, or repeat a saved case."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ._case import Case
from ._clause import CLAUSES, Clause
from ._implementation import Failure, Implementation
from ._verdict import Verdict, _declared, _repeat, judge, judge_case

__all__ = ["Answer", "Question", "answer", "broken", "death_verdict"]


class Question(NamedTuple):
    """A clause in one dtype; or on one case alone."""

    label: str
    dtype: str
    profile: str = "quick"
    seed: int = 0
    case: Case | None = None
    # Seconds after which a failing case is small enough.
    shrink: float = float("inf")


class Answer(NamedTuple):
    """The verdict, and the case that was drawn where it failed; or why there is no verdict."""

    verdict: Verdict | None
    drawn: Case | None = None
    broken: str = ""


class _Enough(KeyboardInterrupt):
    """Ends Hypothesis's search for a smaller case, which lets nothing else through."""


def answer(implementation: Implementation, question: Question, on_case: Callable[[Any], None] | None = None) -> Answer:
    """Judge; ``on_case`` hears of every case before it is tried."""
    label, dtype, profile, seed, case, shrink = question
    watch = _Watch(CLAUSES[label], on_case, shrink)

    def alone(case: Case) -> Verdict:
        return judge_case(implementation, watch.clause, case, profile=profile, seed=seed, dtype=dtype)

    if case is not None:
        return Answer(alone(case), case)
    try:
        verdict = judge(implementation, watch.clause, profile=profile, seed=seed, dtype=dtype)
    except _Enough:
        assert watch.drawn is not None and watch.failure is not None
        seen, watch.seconds = watch.failure, float("inf")
        verdict = alone(watch.drawn)
        if verdict.outcome in ("pass", "unexpected pass"):
            text = f"equal calls have different outcomes: {seen.text}; again on the same case it held"
            return Answer(None, watch.drawn, text)
    return Answer(verdict, watch.drawn)


def broken(error: BaseException) -> Answer:
    """The answer where a check did not come to an end by itself."""
    what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}".removesuffix(": ")
    return Answer(
        None, broken=f"the check broke off with {what}" if isinstance(error, Exception) else f"it raised {what}"
    )


def death_verdict(
    implementation: Implementation, question: Question, found: Answer, *, printed: str = "", seconds: float = 0.0
) -> Verdict:
    """The verdict where there was none to be had: a failure, unless declared as a deviation."""
    clause = CLAUSES[question.label]
    declared = _declared(implementation, clause, question.dtype)
    return Verdict(
        clause.label,
        implementation.name,
        "fail" if declared is None else "deviation",
        found.broken if declared is None else declared,
        case="" if found.drawn is None else repr(found.drawn),
        details={"printed": printed} if printed else {},
        repeat=_repeat(implementation, clause, question.profile, question.seed, question.dtype),
        seconds=seconds,
        seen="" if declared is None else found.broken,
        dtype=question.dtype,
        failing=found.drawn,
    )


class _Watch:
    """A clause that tells what it is about to try, and remembers the last failing case: after shrinking, the least."""

    def __init__(self, clause: Clause, on_case: Callable[[Any], None] | None, seconds: float) -> None:
        self.clause = dataclasses.replace(clause, check=self._check)
        self.drawn: Case | None = None
        self.failure: Failure | None = None
        self.seconds = seconds
        self._inner, self._on_case, self._began = clause.check, on_case, time.monotonic()

    def _check(self, implementation: Implementation, case: Case) -> None:
        if self._on_case is not None:
            self._on_case(case)
        try:
            self._inner(implementation, case)
        except Failure as failure:
            self.drawn, self.failure = case, failure
            raise
        finally:
            if self.failure is not None and time.monotonic() - self._began > self.seconds:
                raise _Enough
