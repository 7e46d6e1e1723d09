"""The reference and our fast paths pass every clause that they claim, without declared deviations."""

from __future__ import annotations

import pytest

from ia_core.backends import indirect_attention
from ia_core.conformance import CLAUSES, judge
from ia_core.conformance._libraries import has_device
from ia_core.conformance._own import fast_paths, references

# More seeds, and full, are in docs/results/controls.json. JAX compiles for every shape: its fast path is judged by
# the demo of .ci/run alone.
OURS = {**references(), **fast_paths(indirect_attention)}
del OURS["ia-jax"]
# JAX compiles for every shape: what tests/test_clauses_b.py judges is judged there alone, sweeps in other libraries.
ELSEWHERE = {"jax": ("IA-G", "IA-T", "IA-D", "IA-R", "IA-E-16", "IA-E-17")}
# The fast paths are judged by every clause in the demo of .ci/run; here by those of special values and of biases.
OF_FAST_PATHS = ("IA-S", "IA-B")


@pytest.mark.parametrize("name", OURS)
def test_ours_pass_every_clause(name: str) -> None:
    library = name.partition("-")[2]
    if not has_device(library):
        pytest.skip(f"{library} is not installed, or has no device (CuPy needs a GPU)")
    implementation = OURS[name]()
    assert not implementation.deviations
    judged = 0
    for clause in CLAUSES.values():
        if clause.label.startswith(ELSEWHERE.get(library, ())):
            continue
        if name.startswith("ia-") and not clause.label.startswith(OF_FAST_PATHS):
            continue
        verdict = judge(implementation, clause)
        assert not verdict.bad, "\n".join(verdict.lines())
        judged += verdict.outcome == "pass"
    assert judged >= (20 if name.startswith("ia-") else 50 if library in ELSEWHERE else 60)
