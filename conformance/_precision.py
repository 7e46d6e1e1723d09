"""Family P: precision, and family L: layout and state."""

from __future__ import annotations

import numpy as np

from ._case import Case, rng_of
from ._clause import clause, conforms, truth_of, within
from ._implementation import Failure, Implementation
from ._libraries import numpy_dtype
from ._tolerance import unit_roundoff

__all__: list[str] = []


@clause("IA-P-01", "float64 is computed in float64", dtype="float64")
def float64(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    centred_values(implementation, "float64", case)


@clause("IA-P-02", "float32 is computed in float32", dtype="float32")
def float32(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    centred_values(implementation, "float32", case)


@clause("IA-P-03", "float16 is computed in float32 and rounded once", dtype="float16")
def float16(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    many_equal_keys(implementation, "float16", case)
    centred_values(implementation, "float16", case)


@clause("IA-P-04", "bfloat16 is computed in float32 and rounded once", dtype="bfloat16")
def bfloat16(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    many_equal_keys(implementation, "bfloat16", case)
    centred_values(implementation, "bfloat16", case)


@clause("IA-P-05", "a long row of equal scores averages its values", mask="none", bias="none")
def long_row(implementation: Implementation, case: Case) -> None:
    many_equal_keys(implementation, case.dtype, case)


def many_equal_keys(implementation: Implementation, dtype: str, case: Case) -> None:
    """4096 equal scores: a half-precision sum of exponentials stops at 2048 (float16) or 256 (bfloat16)."""
    N, D, kind = 4096, 4, numpy_dtype(dtype)
    value = rng_of(case).uniform(1.0, 2.0, (1, 1, N, D)).astype(kind)
    zeros = np.zeros((1, 1, 2, D), kind)
    long = Case(zeros, np.zeros((1, 1, N, D), kind), value, seed=case.seed)
    mean = np.broadcast_to(value.astype(np.float64).mean(axis=-2, keepdims=True), long.output_shape)
    # Equal scores carry no error: what is left of the bound is the sum's and the output's rounding.
    u, u_out = unit_roundoff(dtype), unit_roundoff(dtype, working=False)
    within(
        "mean of 4096 values", implementation.run(long).output, mean, (6 * np.sqrt(N) + 16) * u * 2 + u_out * 2, long
    )


def centred_values(implementation: Implementation, dtype: str, case: Case) -> None:
    """Values whose mean is almost 0: the output's own rounding is small, so that of the weights shows."""
    rng, kind = rng_of(case), numpy_dtype(dtype)
    query, key = (rng.standard_normal((1, 2, rows, 8)).astype(kind) for rows in (1, 64))
    value = rng.standard_normal((1, 2, 64, 8))
    mean = truth_of(Case(query, key, value.astype(kind)))[0].output.high
    conforms(implementation, Case(query, key, (value - mean).astype(kind), seed=case.seed))


@clause("IA-L-01", "strides do not matter")
def strides(implementation: Implementation, case: Case) -> None:
    plain, bound = conforms(implementation, case)
    strided = implementation.run(case, strided=True).output
    within("output of strided inputs", strided, plain, 2 * bound, case)


@clause("IA-L-02", "inputs are not written to")
def not_mutated(implementation: Implementation, case: Case) -> None:
    arrays, keywords = implementation.arguments(case)
    before = implementation.snapshot(arrays, keywords)
    try:
        implementation.fn(*arrays, **keywords)
    except Exception as error:
        raise Failure(f"it raised {type(error).__name__}: {error}", case) from error
    for name, old, new in zip(
        ("query", "key", "value", "bias", "mask"), before, implementation.snapshot(arrays, keywords), strict=False
    ):
        if not np.array_equal(old, new, equal_nan=True):
            raise Failure(f"`{name}` was written to", case)


@clause("IA-L-03", "the same call gives the same bits")
def repeatable(implementation: Implementation, case: Case) -> None:
    first, second = (implementation.run(case).output for _ in range(2))
    within("output of the second call", second, first, 0.0, case)


@clause("IA-L-04", "a call does not depend on the calls before it", needs={"scale"}, scale="given", least=2)
def no_state(implementation: Implementation, case: Case) -> None:
    first, bound = conforms(implementation, case)
    implementation.run(case.but(scale=2 * case.scale + 1))
    implementation.run(case.but(query=case.query[..., :1, :], bias=None, mask=None))
    within("output after other calls", implementation.run(case).output, first, 2 * bound, case)
