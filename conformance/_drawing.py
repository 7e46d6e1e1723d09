"""Draw cases, and look for the smallest that refutes a clause.

Hypothesis draws structures, by the seed and what a clause asks of its cases. All implementations, dtypes and clauses
that ask for the same choose from the same ones: the search is made once, and the oracle's answers serve whoever gets
the same case. Each clause tries those first that differ most from each other.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from ._case import FILLED_BY, Case, fill_case, structures
from ._clause import CLAUSES, Clause
from ._implementation import Failure, Implementation
from ._truth import is_telling

__all__ = ["PROFILES", "refute"]

# Cases per clause; a fixed clause has one.
PROFILES = {"quick": 6, "full": 20}
# At most so many where shapes are not drawn: they differ in less, and cost more.
FEW = {"quick": 3, "full": 6}
# So many structures are drawn for every case that is wanted, to choose from; more where too many are too easy.
_SPARE = (4, 32)

Structure = dict[str, Any]


class _Draw(NamedTuple):
    """What decides which cases are tried."""

    label: str
    few_shapes: bool
    dtype: str
    features: frozenset[str]
    arithmetic: str
    wanted: int
    seed: int

    def case(self, structure: Structure) -> Case | None:
        """The case of a structure; None if wrong outputs do not stand out in it."""
        clause = CLAUSES[self.label]
        least = {name: clause.draw[name] for name in ("least_heads", "least_batch") if name in clause.draw}
        case = fill_case(structure, self.dtype, self.features, **least).but(arithmetic=self.arithmetic)
        return case if not clause.telling or is_telling(case) else None

    def search(self, spare: int) -> tuple[tuple[Any, ...], bool, int, int]:
        """What Hypothesis is asked for: a search, which other clauses may have asked for too."""
        asked = sorted((name, value) for name, value in CLAUSES[self.label].draw.items() if name != "least_batch")
        return tuple(asked), self.few_shapes, self.seed, spare * self.wanted


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
        min(
            clause.examples or PROFILES[profile],
            FEW[profile] if implementation.few_shapes else PROFILES["full"],
            implementation.most_cases or PROFILES["full"],
        ),
        draw_seed,
    )
    spare, cases = _drawn(draw)
    for case in cases:
        failure = _failure(functools.partial(check, case))
        if failure is not None:
            return _smallest(check, draw, spare, failure) if shrink else failure
    return None


def _smallest(check: Callable[[Case], None], draw: _Draw, spare: int, first: Failure) -> Failure:
    """Hypothesis draws the same structures again, and shrinks the one whose case fails."""

    def on_structure(structure: Structure) -> None:
        case = draw.case(structure)
        # A case of no use counts as one that passes, as it did when the structures were drawn.
        failure = None if case is None else _failure(functools.partial(check, case))
        if failure is not None:
            raise failure

    try:
        return _failure(_under_hypothesis(on_structure, *draw.search(spare))) or first
    except Flaky:
        text = f"equal calls have different outcomes: {first.text}; again on the same case it held"
        return Failure(text, first.case, **first.details)


def _failure(run: Callable[[], None]) -> Failure | None:
    try:
        run()
    except Failure as failure:
        return failure
    return None


@functools.lru_cache(maxsize=256)
def _drawn(draw: _Draw) -> tuple[int, list[Case]]:
    """How many structures it took for each case, and the cases, which depend on nothing but the draw."""
    found: list[Case] = []
    for spare in _SPARE:
        found = []
        for case in _cases(draw, spare):
            found.append(case)
            if len(found) == draw.wanted:
                return spare, found
    if not found:
        raise RuntimeError(f"{draw.label}: in no case that was drawn do wrong outputs stand out")
    return _SPARE[-1], found


def _cases(draw: _Draw, spare: int) -> Iterator[Case]:
    return filter(None, map(draw.case, varied(_structures(*draw.search(spare)), draw.label)))


def varied(structures: Sequence[Structure], label: str) -> Iterator[Structure]:
    """All of them, each time the one with the most pairs of choices not yet seen together; ties fall by the label.

    Examples
    --------
    >>> sizes = {"Hk": 1, "M": 2, "N": 2, "D": 1, "Dv": 1, "group": 1, "batch": ()}
    >>> some = [sizes | {"bias": b, "mask": m, "mask_shape": 0, "scale": None} for b in "ab" for m in "cd"]
    >>> first, second, *_ = varied(some, "IA-F-01")
    >>> first["bias"] != second["bias"] and first["mask"] != second["mask"]
    True
    """
    order = np.random.default_rng(zlib.crc32(label.encode())).permutation(len(structures))
    left = {int(n): _pairs(structures[n]) for n in order}
    seen: set[Any] = set()
    while left:
        best = max(left, key=lambda n: len(left[n] - seen))
        seen |= left.pop(best)
        yield structures[best]


def _pairs(structure: Structure) -> set[Any]:
    choices = [(name, structure[name]) for name in ("bias", "mask", "mask_shape", "scale", "batch", "group")]
    choices += [(name, min(structure[name], 3)) for name in ("Hk", "M", "N", "D", "Dv")]
    return set(itertools.combinations(choices, 2))


@functools.lru_cache(maxsize=1024)
def _structures(search: tuple[Any, ...], few_shapes: bool, draw_seed: int, count: int) -> list[Structure]:
    found: list[Structure] = []
    _under_hypothesis(found.append, search, few_shapes, draw_seed, count)()
    return found


def _under_hypothesis(
    look: Callable[[Structure], None], search: tuple[Any, ...], few_shapes: bool, draw_seed: int, count: int
) -> Callable[[], None]:
    """A test that looks at every structure drawn; ``search`` has the arguments of :func:`structures`."""

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
    @given(structures(few_shapes=few_shapes, **dict(search)))
    def test(structure: Structure) -> None:
        look(structure)

    return test
