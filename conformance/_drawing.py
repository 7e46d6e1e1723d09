"""Draw cases, and look for the smallest that refutes a clause.

Hypothesis draws structures. They depend on the clause and the seed alone, so that all implementations, in all dtypes,
are tried on the same ones: the search is made once, and the oracle's answers serve whoever gets the same case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import UnsatisfiedAssumption

from ._case import FILLED_BY, Case, fill_case, structures
from ._clause import CLAUSES, Clause
from ._implementation import Failure, Implementation
from ._truth import is_telling

__all__ = ["PROFILES", "refute"]

# Cases per clause; a fixed clause has one.
PROFILES = {"quick": 6, "full": 40}
# So many structures are drawn for every case that is wanted, as some are too easy; more where that is not enough.
_SPARE = (2, 8, 32)

Structure = dict[str, Any]


class _Draw(NamedTuple):
    """What decides which cases are tried."""

    label: str
    few_shapes: bool
    dtype: str
    features: frozenset[str]
    arithmetic: str
    count: int
    seed: int

    def case(self, structure: Structure) -> Case | None:
        """The case of a structure; None if wrong outputs do not stand out in it."""
        clause = CLAUSES[self.label]
        least = {name: clause.draw[name] for name in ("least_heads", "least_batch") if name in clause.draw}
        case = fill_case(structure, self.dtype, self.features, **least).but(arithmetic=self.arithmetic)
        return case if not clause.telling or is_telling(case) else None


def refute(
    implementation: Implementation,
    clause: Clause,
    profile: str,
    draw_seed: int,
    dtype: str,
    tried: list[int],
    *,
    shrink: bool = True,
) -> Failure | None:
    """The smallest failure that Hypothesis finds, or None; without shrinking, the first. Counts in ``tried[0]``."""

    def check(case: Any) -> None:
        tried[0] += 1
        # Poisoned and infinite inputs are part of the cases; their warnings say nothing.
        with np.errstate(all="ignore"):
            clause.check(implementation, case)

    if clause.fixed:
        return _failure(lambda: check(None))
    draw = _Draw(
        clause.label,
        bool(implementation.few_shapes),
        dtype,
        implementation.claims & FILLED_BY,
        "standard" if clause.strict else implementation.arithmetic.get(dtype, "standard"),
        clause.examples or PROFILES[profile],
        draw_seed,
    )
    spare, cases = _drawn(draw)
    for case in cases:
        failure = _failure(functools.partial(check, case))
        if failure is not None:
            return (_smallest(check, draw, spare) if shrink else None) or failure
    return None


def _smallest(check: Callable[[Case], None], draw: _Draw, spare: int) -> Failure | None:
    """Hypothesis draws the same structures again, and shrinks the one whose case fails."""

    def on_structure(structure: Structure) -> None:
        case = draw.case(structure)
        # A case of no use counts as one that passes, as it did when the structures were drawn.
        failure = None if case is None else _failure(functools.partial(check, case))
        if failure is not None:
            raise failure

    return _failure(_under_hypothesis(on_structure, draw.label, draw.few_shapes, draw.seed, spare * draw.count))


def _failure(run: Callable[[], None]) -> Failure | None:
    try:
        run()
    except Failure as failure:
        return failure
    except UnsatisfiedAssumption:  # the check has no use for this case
        return None
    return None


@functools.lru_cache(maxsize=256)
def _drawn(draw: _Draw) -> tuple[int, list[Case]]:
    """How many structures it took for each case, and the cases, which depend on nothing but the draw."""
    found: list[Case] = []
    for spare in _SPARE:
        found = []
        for case in _cases(draw, spare):
            found.append(case)
            if len(found) == draw.count:
                return spare, found
    if not found:
        raise RuntimeError(f"{draw.label}: in no case that was drawn do wrong outputs stand out")
    return _SPARE[-1], found


def _cases(draw: _Draw, spare: int) -> Iterator[Case]:
    return filter(None, map(draw.case, _structures(draw.label, draw.few_shapes, draw.seed, spare * draw.count)))


@functools.lru_cache(maxsize=1024)
def _structures(label: str, few_shapes: bool, draw_seed: int, count: int) -> list[Structure]:
    found: list[Structure] = []
    _under_hypothesis(found.append, label, few_shapes, draw_seed, count)()
    return found


def _under_hypothesis(
    look: Callable[[Structure], None], label: str, few_shapes: bool, draw_seed: int, count: int
) -> Callable[[], None]:
    """A test that looks at every structure drawn for a clause."""
    draw = {name: value for name, value in CLAUSES[label].draw.items() if name != "least_batch"}

    @seed(draw_seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(structures(few_shapes=few_shapes, **draw))
    def test(structure: Structure) -> None:
        look(structure)

    return test
