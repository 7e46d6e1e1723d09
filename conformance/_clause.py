"""Clauses: labelled statements about an implementation, each with a check that tries to refute it."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from ._case import Case
from ._implementation import Failure, Implementation
from ._oracle import Exact
from ._truth import truth_of

__all__ = [
    "CLAUSES",
    "FAMILIES",
    "Clause",
    "Comparison",
    "check_elements",
    "clause",
    "conforms",
    "draw_seed",
    "observing",
    "profile",
    "truth_of",
    "under_profile",
    "within",
]

FAMILIES = {
    "F": "forward semantics",
    "E": "equivalences",
    "S": "special values and edges",
    "P": "precision",
    "G": "gradients",
    "L": "layout",
    "T": "transforms",
    "D": "determinism and state",
    "B": "bias functions",
    "R": "resources",
    "N": "noise laws",
    "X": "bad input",
}


@dataclasses.dataclass(frozen=True)
class Clause:
    """One statement of docs/spec.md and its check.

    Attributes
    ----------
    label, title : str
    check : callable
        ``check(implementation, case)`` raises Failure.
    needs : frozenset of str
        Features without which it does not apply.
    draw : dict
        Keywords of :func:`ia_core.conformance.cases`.
    dtypes : tuple of str
        The dtypes it is about; empty for all.
    fixed : bool
        It builds its own case and ignores the one drawn.
    once : bool
        It does not depend on the dtype: the first one is enough.
    strict : bool
        It is about the arithmetic itself, so a declared one does not widen its bound.
    telling : bool
        A drawn case is tried only if wrong outputs stand out in it: zeros, the mean of the values, and an output
        computed in the next lower precision.
    libraries : frozenset of str
        Those it is about; empty for all.
    examples : int or None
        How many cases are drawn in either profile, where a check makes many calls out of each; by default the
        profile says.

    Examples
    --------
    >>> from ia_core.conformance import CLAUSES
    >>> CLAUSES["IA-F-02"].title
    'the default scale is 1 / sqrt(D)'
    """

    label: str
    title: str
    check: Callable[[Implementation, Case], None]
    needs: frozenset[str]
    draw: dict[str, Any]
    dtypes: tuple[str, ...] = ()
    fixed: bool = False
    once: bool = False
    strict: bool = False
    telling: bool = True
    libraries: frozenset[str] = frozenset()
    examples: int | None = None

    @property
    def family(self) -> str:
        """A key of FAMILIES."""
        return self.label.split("-")[1]

    @property
    def level(self) -> str:
        """``core``, which everybody owes, or the features that must be claimed for it."""
        return "+".join(sorted(self.needs - {"bias"})) or "core"

    def unsupported(self, implementation: Implementation) -> str | None:
        """Why the clause does not apply to an implementation, or None."""
        missing = sorted(self.needs - implementation.claims)
        if missing:
            return f"it does not claim {', '.join(missing)}"
        if self.dtypes and not set(self.dtypes) & set(implementation.dtypes):
            return f"it does not take {' or '.join(self.dtypes)}"
        if self.libraries and implementation.library not in self.libraries:
            return f"{implementation.library} has no such case"
        return None


CLAUSES: dict[str, Clause] = {}


def clause(
    label: str,
    title: str,
    *,
    needs: Collection[str] = (),
    dtype: str | None = None,
    dtypes: Collection[str] = (),
    fixed: bool = False,
    once: bool = False,
    strict: bool = False,
    telling: bool = True,
    libraries: Collection[str] = (),
    examples: int | None = None,
    **draw: Any,
) -> Callable[[Callable[[Implementation, Case], None]], Callable[[Implementation, Case], None]]:
    """Register a check under its label."""

    def register(check: Callable[[Implementation, Case], None]) -> Callable[[Implementation, Case], None]:
        if label in CLAUSES:
            raise ValueError(f"clause {label} is registered twice")
        about = (dtype,) if dtype else tuple(dtypes)
        flags: dict[str, Any] = {"fixed": fixed, "once": once or fixed, "strict": strict, "telling": telling}
        flags |= {"libraries": frozenset(libraries), "examples": examples}
        CLAUSES[label] = Clause(label, title, check, frozenset(needs), draw, about, **flags)
        return check

    return register


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison of numbers: what was compared, on which case, and error / bound of every element."""

    what: str
    case: Case
    ratio: np.ndarray

    @property
    def worst(self) -> float:
        """The largest error in units of the bound."""
        return float(np.max(self.ratio, initial=0.0))


_profile = contextvars.ContextVar("profile", default=("quick", 0))
_observer: contextvars.ContextVar[Callable[[Comparison], None] | None] = contextvars.ContextVar(
    "observer", default=None
)


def profile() -> str:
    """The profile under which a clause is being judged: quick or full."""
    return _profile.get()[0]


def draw_seed() -> int:
    """The seed that the user gave, for what a check samples besides the cases that are drawn from it."""
    return _profile.get()[1]


@contextlib.contextmanager
def under_profile(name: str, seed: int = 0) -> Iterator[None]:
    """Judge under a profile, with a seed."""
    token = _profile.set((name, seed))
    try:
        yield
    finally:
        _profile.reset(token)


@contextlib.contextmanager
def observing(observer: Callable[[Comparison], None]) -> Iterator[None]:
    """See every comparison that clauses make, whether it passes or fails; observers nest."""
    outer = _observer.get()

    def both(comparison: Comparison) -> None:
        observer(comparison)
        if outer is not None:
            outer(comparison)

    token = _observer.set(both)
    try:
        yield
    finally:
        _observer.reset(token)


def conforms(implementation: Implementation, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The output is within the bound of the truth (IA-F-01); gives both.

    Clauses that compare two calls check one of them so: two wrong outputs may agree with each other.
    """
    truth, bound = truth_of(case)
    result = implementation.run(case)
    check_elements("output", result.output, truth.output, bound.output, case)
    return result.output, bound.output


def check_elements(what: str, got: np.ndarray, wanted: Exact, bound: np.ndarray, case: Case) -> None:
    """Every element within its bound; a nan where none is wanted is infinitely far."""
    error = wanted.error_of(got)
    _judge(what, error, got, wanted.high, bound, case)


def within(what: str, got: np.ndarray, wanted: np.ndarray, bound: np.ndarray | float, case: Case) -> None:
    """Every element of got within the bound of another computed array."""
    with np.errstate(invalid="ignore"):
        error = np.where(got == wanted, 0.0, np.abs(got - wanted))
    _judge(what, error, got, wanted, np.broadcast_to(bound, error.shape), case)


def _judge(what: str, error: np.ndarray, got: np.ndarray, wanted: np.ndarray, bound: np.ndarray, case: Case) -> None:
    if error.size == 0:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0.0, 0.0, np.where(np.isnan(error), np.inf, error / bound))
    observer = _observer.get()
    if observer is not None:
        observer(Comparison(what, case, ratio))
    worst = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    if ratio[worst] <= 1.0:
        return
    at = tuple(int(i) for i in worst)
    raise Failure(
        f"{what}{list(at)} is {got[worst]:.9g}, wanted {wanted[worst]:.9g} within {bound[worst]:.3g}: "
        f"{ratio[worst]:.3g} times the bound",
        case,
        index=at,
        got=float(got[worst]),
        wanted=float(wanted[worst]),
        bound=float(bound[worst]),
        error_in_bounds=float(ratio[worst]),
    )
