"""The reference and our fast paths pass every clause that they claim, without declared deviations."""

from __future__ import annotations

import pytest

from ia_core.backends import indirect_attention
from ia_core.conformance import CLAUSES, judge
from ia_core.conformance._libraries import has_device
from ia_core.conformance._own import fast_paths, references

# JAX compiles for every shape, so one seed there and three elsewhere.
SEEDS = {"numpy": (0, 1, 2), "torch": (0, 1, 2), "array_api_strict": (0, 1, 2), "jax": (0,)}
OURS = {**references(), **fast_paths(indirect_attention)}
# Under JAX each bias function costs a compilation of its gradient: these are judged by `ia-core conform` alone.
SLOW = {"jax": {"parameter_grad", "double_grad"}}


@pytest.mark.parametrize("name", OURS)
def test_ours_pass_every_clause(name: str) -> None:
    library = name.partition("-")[2]
    if not has_device(library):
        pytest.skip(f"{library} is not installed, or has no device (CuPy needs a GPU)")
    implementation = OURS[name]()
    assert not implementation.deviations
    judged = 0
    for seed in SEEDS.get(library, (0,)):
        for clause in CLAUSES.values():
            if clause.needs & SLOW.get(library, set()):
                continue
            verdict = judge(implementation, clause, seed=seed)
            assert not verdict.bad, f"seed {seed}: " + "\n".join(verdict.lines())
            judged += verdict.outcome == "pass"
    assert judged >= 60
