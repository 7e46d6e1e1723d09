"""Clauses: labelled statements about an implementation, each with a check that tries to refute it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from . import _oracle
from ._case import Case
from ._implementation import Failure, Implementation
from ._oracle import Exact, Forward
from ._tolerance import ForwardBound, forward_bound

__all__ = ["CLAUSES", "FAMILIES", "Clause", "check_elements", "clause", "conforms", "truth_of", "within"]

FAMILIES = {
    "F": "forward semantics",
    "E": "equivalences",
    "S": "special values and edges",
    "P": "precision",
    "G": "gradients",
    "L": "layout and state",
    "B": "bias functions",
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
    dtype : str or None
        The dtype it is about; None for the implementation's first.
    fixed : bool
        It builds its own case and ignores the one drawn.
    libraries : frozenset of str
        Those it is about; empty for all.

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
    dtype: str | None = None
    fixed: bool = False
    libraries: frozenset[str] = frozenset()

    @property
    def family(self) -> str:
        """F, E, S, P, G, L, B or X."""
        return self.label.split("-")[1]

    def unsupported(self, implementation: Implementation) -> str | None:
        """Why the clause does not apply to an implementation, or None."""
        missing = sorted(self.needs - implementation.claims)
        if missing:
            return f"it does not claim {', '.join(missing)}"
        if self.dtype is not None and self.dtype not in implementation.dtypes:
            return f"it does not take {self.dtype}"
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
    fixed: bool = False,
    libraries: Collection[str] = (),
    **draw: Any,
) -> Callable[[Callable[[Implementation, Case], None]], Callable[[Implementation, Case], None]]:
    """Register a check under its label."""

    def register(check: Callable[[Implementation, Case], None]) -> Callable[[Implementation, Case], None]:
        if label in CLAUSES:
            raise ValueError(f"clause {label} is registered twice")
        CLAUSES[label] = Clause(label, title, check, frozenset(needs), draw, dtype, fixed, frozenset(libraries))
        return check

    return register


def truth_of(case: Case) -> tuple[Forward, ForwardBound]:
    """The oracle's answer and the bound for a case."""
    truth = _oracle.forward(**case.arguments)
    return truth, forward_bound(case, truth)


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
