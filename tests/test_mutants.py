"""The suite convicts every known bug by the clauses that it is filed under, and acquits the code it was made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core.conformance import CLAUSES, Implementation, judge
from ia_core.conformance._libraries import has_device, numpy_dtype
from ia_core.conformance._self_test import judge_one
from ia_core.conformance.mutants import FAMILIES, MUTANTS, Attention, Backward, Mutant, Tiled
from ia_core.conformance.mutants._mutant import DTYPES, FORWARD
from ia_core.conformance.mutants._states import Invariant

# Ten that stand for the rest: they are judged with three seeds.
TEN = [
    *("scale_missing", "softmax_over_queries", "offsets_flipped", "bias_before_scale", "mask_inverted", "heads_tiled"),
    *("one_head_bias", "half_accumulation", "empty_row_gives_the_mean", "bias_gradient_not_summed"),
]


def convicts(mutant: Mutant, seed: int) -> None:
    if not has_device(mutant.library):
        pytest.skip(f"{mutant.library} is not here")
    profile = "full" if mutant.only_full else "quick"
    for label in mutant.killed_by:
        finding = judge_one(mutant, CLAUSES[label], profile, seed)
        assert finding.outcome == "killed", f"{label} does not see {mutant.name} with seed {seed}: {finding}"


@pytest.mark.parametrize("name", MUTANTS)
def test_named_clauses_convict(name: str) -> None:
    convicts(MUTANTS[name], 0)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", TEN)
def test_named_clauses_convict_with_other_seeds(name: str, seed: int) -> None:
    convicts(MUTANTS[name], seed)


@pytest.mark.parametrize("name", TEN)
def test_a_verdict_says_how_to_repeat_it(name: str) -> None:
    mutant = MUTANTS[name]
    verdict = judge(mutant.implementation(), CLAUSES[mutant.killed_by[0]])
    assert verdict.outcome == "fail"
    assert verdict.repeat.startswith("ia-core conform")
    assert verdict.details["error_in_bounds"] > 1


BASES: dict[str, dict[str, Any]] = {
    "steps": {"fn": Attention(), "supports": FORWARD | {"grad", "bias_grad"}, "vjp": Backward()},
    "tiles": {"fn": Tiled(), "supports": FORWARD},
    "sums": {"fn": Invariant(), "supports": FORWARD | {"batch_invariant"}},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("label", sorted(CLAUSES))
def test_unmutated_is_acquitted(label: str, base: str) -> None:
    honest = Implementation(name=base, dtypes=DTYPES, **BASES[base])
    verdict = judge(honest, CLAUSES[label], seed=3)
    assert verdict.outcome in ("pass", "not supported"), verdict.lines()


# What does not look at the numbers: form, side effects, repetition, outputs without elements or keys.
FORM = {
    *("IA-F-10", "IA-S-04", "IA-S-05", "IA-S-13"),
    *("IA-D-01", "IA-D-02", "IA-D-05", "IA-D-06", "IA-D-07", "IA-D-08"),
}


def zeros(query: Any, key: Any, value: Any, *, return_lse: bool = False, **keywords: Any) -> Any:
    output = np.zeros((*query.shape[:-1], value.shape[-1]), query.dtype)
    return (output, output.sum(axis=-1)) if return_lse else output


def mean_of_values(query: Any, key: Any, value: Any, *, return_lse: bool = False, **keywords: Any) -> Any:
    mean = value.astype(np.float64).mean(axis=-2, keepdims=True) if value.size else np.zeros((*value.shape[:-2], 1, 1))
    mean = np.repeat(mean, query.shape[-3] // key.shape[-3] if key.shape[-3] else 1, axis=-3)
    output = np.broadcast_to(mean, (*query.shape[:-1], value.shape[-1])).astype(query.dtype)
    return (output, np.zeros(output.shape[:-1], query.dtype)) if return_lse else output


class Lower(Attention):
    """Everything in the next lower precision: float32, float16, or the half itself."""

    def work(self, call: Any) -> Any:
        name = call.query.dtype.name
        return numpy_dtype({"float64": "float32", "float32": "float16"}.get(name, name))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("fn", "where_it_is_right"),
    [
        (zeros, set()),
        # Equal values, equal scores, one key, an infinite value; queries that may be flushed to 0 make equal scores.
        # The SNR is the same under any weights.
        (mean_of_values, {"IA-E-13", "IA-P-05", "IA-S-08", "IA-S-14", "IA-S-15", "IA-N-04"}),
        # nan and inf are what they are in any precision, and mean squares are not seen more closely than by 4 %.
        (Lower(), {"IA-S-03", "IA-S-07", "IA-S-14", *(f"IA-N-0{n}" for n in range(3, 9))}),
    ],
    ids=["zeros", "mean", "lower"],
)
def test_no_clause_is_vacuous(fn: Any, where_it_is_right: set[str], seed: int) -> None:
    trivial = Implementation(fn, "trivial", dtypes=DTYPES, supports=FORWARD | {"batch_invariant"})
    verdicts = [judge(trivial, clause, seed=seed, shrink=False) for clause in CLAUSES.values()]
    assert {verdict.label for verdict in verdicts if verdict.outcome == "pass"} == FORM | where_it_is_right


def test_bugs_are_told_apart() -> None:
    """No clause convicts everything: the verdict says which bug it is."""
    core = [clause for clause in CLAUSES.values() if clause.level in ("core", "mask", "scale", "grouped")]
    caught = {
        name: frozenset(c.label for c in core if judge_one(MUTANTS[name], c, "quick", 0).outcome == "killed")
        for name in TEN[1:7]
    }
    assert len(set(caught.values())) == len(caught), caught


def test_registry() -> None:
    assert len(MUTANTS) >= 80
    assert {mutant.family for mutant in MUTANTS.values()} == set(FAMILIES)
    assert len({mutant.change for mutant in MUTANTS.values()}) == len(MUTANTS)
    for name, mutant in MUTANTS.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]+", name) and mutant.name == name
        assert mutant.change and mutant.killed_by and set(mutant.killed_by) <= set(CLAUSES), name


# They follow from the others: docs/mutants.md says why they stay.
FOLLOWS = {"IA-E-02", "IA-E-04", "IA-E-05"}


def test_every_clause_has_a_bug() -> None:
    named = {label for mutant in MUTANTS.values() for label in mutant.killed_by}
    assert set(CLAUSES) - named == FOLLOWS
    text = (Path(__file__).parents[1] / "docs" / "mutants.md").read_text(encoding="utf-8")
    assert all(f"**{label}**" in text for label in FOLLOWS)
