"""The suite convicts ten known bugs by the clause that names them, and acquits the code they were made from."""

from __future__ import annotations

import pytest

from ia_core.conformance import CLAUSES, Implementation, judge

from .mutants import DTYPES, FORWARD, MUTANTS, Mutant, attention


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fn.__name__)
def test_named_clause_convicts(mutant: Mutant, seed: int) -> None:
    for label in mutant.caught_by:
        verdict = judge(mutant.implementation, CLAUSES[label], seed=seed)
        assert verdict.outcome == "fail", f"{label} does not see {mutant.fn.__name__} with seed {seed}"
        assert verdict.repeat.startswith("ia-core conform")
        assert verdict.details["error_in_bounds"] > 1


@pytest.mark.parametrize("label", sorted(CLAUSES))
def test_unmutated_is_acquitted(label: str) -> None:
    honest = Implementation(attention, "honest", dtypes=DTYPES, supports=FORWARD | {"position_bias"})
    verdict = judge(honest, CLAUSES[label], seed=3)
    assert verdict.outcome in ("pass", "not supported"), verdict.lines()


def test_bugs_are_told_apart() -> None:
    """No clause convicts everything: the verdict says which bug it is."""
    caught = {m.fn.__name__: {label for label in CLAUSES if _fails(m, label)} for m in MUTANTS[1:7]}
    assert len(set(map(frozenset, caught.values()))) == len(caught), caught


def _fails(mutant: Mutant, label: str) -> bool:
    return judge(mutant.implementation, CLAUSES[label], seed=0).outcome == "fail"
