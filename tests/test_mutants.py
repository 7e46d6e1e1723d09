"""The suite convicts ten known bugs by the clause that names them, and acquits the code they were made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core.conformance import CLAUSES, Implementation, judge

from .more_mutants import implementations
from .mutants import DTYPES, FORWARD, MUTANTS, Mutant, attention


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fn.__name__)
def test_named_clause_convicts(mutant: Mutant, seed: int) -> None:
    for label in mutant.caught_by:
        verdict = judge(mutant.implementation, CLAUSES[label], seed=seed)
        assert verdict.outcome == "fail", f"{label} does not see {mutant.fn.__name__} with seed {seed}"
        assert verdict.repeat.startswith("ia-core conform")
        assert verdict.details["error_in_bounds"] > 1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("mutant", "labels"), implementations(), ids=lambda one: getattr(one, "name", ""))
def test_named_clause_convicts_small_bugs(mutant: Implementation, labels: tuple[str, ...], seed: int) -> None:
    for label in labels:
        verdict = judge(mutant, CLAUSES[label], seed=seed)
        assert verdict.outcome == "fail", f"{label} does not see {mutant.name} with seed {seed}"


@pytest.mark.parametrize("label", sorted(CLAUSES))
def test_unmutated_is_acquitted(label: str) -> None:
    honest = Implementation(attention, "honest", dtypes=DTYPES, supports=FORWARD | {"position_bias"})
    verdict = judge(honest, CLAUSES[label], seed=3)
    assert verdict.outcome in ("pass", "not supported"), verdict.lines()


# What does not look at the numbers: form, inputs that are written to, repetition, outputs without elements or keys.
FORM = {"IA-F-10", "IA-L-02", "IA-L-03", "IA-S-04", "IA-S-05"}


def zeros(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    return np.zeros((*query.shape[:-1], value.shape[-1]), query.dtype)


def mean_of_values(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    mean = value.astype(np.float64).mean(axis=-2, keepdims=True) if value.size else np.zeros((*value.shape[:-2], 1, 1))
    mean = np.repeat(mean, query.shape[-3] // key.shape[-3], axis=-3)
    return np.broadcast_to(mean, (*query.shape[:-1], value.shape[-1])).astype(query.dtype)


@pytest.mark.parametrize(
    ("fn", "where_it_is_right"),
    [(zeros, set()), (mean_of_values, {"IA-E-13", "IA-P-05", "IA-S-08"})],  # equal values, equal scores, one key
    ids=["zeros", "mean"],
)
def test_no_clause_is_vacuous(fn: Any, where_it_is_right: set[str]) -> None:
    trivial = Implementation(fn, fn.__name__, dtypes=DTYPES, supports=FORWARD | {"position_bias"})
    passed = {label for label, clause in CLAUSES.items() if judge(trivial, clause).outcome == "pass"}
    assert passed == FORM | where_it_is_right


def test_bugs_are_told_apart() -> None:
    """No clause convicts everything: the verdict says which bug it is."""
    caught = {m.fn.__name__: {label for label in CLAUSES if _fails(m, label)} for m in MUTANTS[1:7]}
    assert len(set(map(frozenset, caught.values()))) == len(caught), caught


def _fails(mutant: Mutant, label: str) -> bool:
    return judge(mutant.implementation, CLAUSES[label], seed=0).outcome == "fail"
