"""Clauses on sizes, masks, edges, halves, memory and positions convict bugs of their kind, and acquit the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ia_core import indirect_attention
from ia_core.conformance import CLAUSES, Implementation, judge
from ia_core.conformance._libraries import has_device
from ia_core.conformance._own import DTYPES
from ia_core.conformance._verdict import dtypes_of

from .clause_bugs import CLAIMS, MUTANTS, Mutant

NEW = (
    *(f"IA-F-{n}" for n in (13, 14, 15, 16)),
    *(f"IA-E-{n}" for n in (16, 17, 18)),
    *(f"IA-S-{n}" for n in (11, 12, 13, 14, 15)),
    *(f"IA-P-0{n}" for n in (6, 7, 8)),
    *(f"IA-L-0{n}" for n in (1, 5, 6, 7, 8, 9)),
    *(f"IA-B-{n}" for n in ("08", "09", "10")),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.fn.__name__}-{m.label}-{m.dtype}-{m.profile}")
def test_convicts(mutant: Mutant) -> None:
    implementation = Implementation(mutant.fn, "mutant", dtypes=(mutant.dtype,), supports=CLAIMS)
    for seed in range(3):
        verdict = judge(implementation, CLAUSES[mutant.label], profile=mutant.profile, seed=seed, shrink=seed == 0)
        assert verdict.outcome == "fail", f"{mutant.label} acquits {mutant.fn.__name__} with seed {seed}"


def test_every_clause_here_has_a_mutant() -> None:
    assert {mutant.label for mutant in MUTANTS} == set(NEW)


SWEEPS = ("IA-E-16", "IA-E-17")


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("profile", ["quick", "full"])
@pytest.mark.parametrize("label", NEW)
def test_acquits_the_reference(label: str, profile: str, library: str) -> None:
    if not has_device(library):
        pytest.skip(f"{library} is not installed")
    reference = Implementation(indirect_attention, "reference", library=library, dtypes=DTYPES, supports=CLAIMS)
    clause = CLAUSES[label]
    if label in SWEEPS and (library, profile) == ("torch", "full"):
        pytest.skip("a sweep over sizes, slow in PyTorch: judged in quick, and in full on NumPy")
    # Hundreds of small calls are slow where many threads of PyTorch share few cores.
    for seed in range(1 if (library, profile) == ("torch", "full") else 3):
        for dtype in dtypes_of(reference, clause, "full"):
            verdict = judge(reference, clause, profile=profile, seed=seed, dtype=dtype)
            assert verdict.outcome == "pass", "\n".join(verdict.lines())


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("label", [label for label in NEW if label[3] in "LS"])
def test_acquits_another_layout(label: str, library: str) -> None:
    if not has_device(library):
        pytest.skip(f"{library} is not installed")

    def by_rows(q: Any, k: Any, v: Any, **keywords: Any) -> Any:
        return indirect_attention(*(x.swapaxes(-2, -3) for x in (q, k, v)), **keywords).swapaxes(-2, -3)

    implementation = Implementation(by_rows, "by rows", library=library, layout="BMHD", supports=CLAIMS)
    verdict = judge(implementation, CLAUSES[label])
    assert verdict.outcome == "pass", "\n".join(verdict.lines())


def test_the_specification_names_the_features_of_optional_clauses() -> None:
    text = (Path(__file__).parents[1] / "docs" / "spec.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (IA-[FESPLB]-\d\d) \| (.*)$", text, re.MULTILINE))
    for label, row in rows.items():
        clause = CLAUSES[label]
        named = {word for group in re.findall(r"\((`\w+`(?:, `\w+`)*)\)", row) for word in re.findall(r"\w+", group)}
        assert named == clause.needs - {"bias"}, label
