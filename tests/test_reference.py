"""The reference and our fast paths pass every clause that they claim, without declared deviations."""

from __future__ import annotations

import importlib.util

import pytest

from ia_core._cli import _builtin
from ia_core.conformance import CLAUSES, judge

# JAX compiles for every shape, so one seed there and three elsewhere.
SEEDS = {"numpy": (0, 1, 2), "torch": (0, 1, 2), "array_api_strict": (0, 1, 2), "jax": (0,)}
OURS = [name for name in _builtin() if name.startswith(("reference-", "ia-"))]


@pytest.mark.parametrize("name", OURS)
def test_ours_pass_every_clause(name: str) -> None:
    library = name.partition("-")[2]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if library == "cupy":
        cupy = pytest.importorskip("cupy")
        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            pytest.skip(f"there is no GPU that CuPy can use ({error})")
    implementation = _builtin()[name]()
    assert not implementation.deviations
    judged = 0
    for seed in SEEDS.get(library, (0,)):
        for clause in CLAUSES.values():
            verdict = judge(implementation, clause, seed=seed)
            assert not verdict.bad, f"seed {seed}: " + "\n".join(verdict.lines())
            judged += verdict.outcome == "pass"
    assert judged >= 60
