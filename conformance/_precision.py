"""Family P: precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from ia_core import LinearOffset, OffsetMLP, OffsetTable, PositionBias

from ._case import Case, rng_of
from ._clause import clause, conforms, truth_of, within
from ._implementation import Implementation
from ._libraries import numpy_dtype
from ._tolerance import rounding_of

__all__: list[str] = []


@clause("IA-P-01", "float64 is computed in float64", dtype="float64", strict=True)
def float64(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    centred_values(implementation, "float64", case)


@clause("IA-P-02", "float32 is computed in float32", dtype="float32", strict=True)
def float32(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    centred_values(implementation, "float32", case)


@clause("IA-P-03", "float16 is computed in float32 and rounded once", dtype="float16", strict=True)
def float16(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    many_equal_keys(implementation, "float16", case)
    centred_values(implementation, "float16", case)


@clause("IA-P-04", "bfloat16 is computed in float32 and rounded once", dtype="bfloat16", strict=True)
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
    r = rounding_of(dtype, case.arithmetic)
    within(
        "mean of 4096 values", implementation.run(long).output, mean, ((6 * np.sqrt(N) + 16) * r.u + r.out) * 2, long
    )


def centred_values(implementation: Implementation, dtype: str, case: Case) -> None:
    """Values whose mean is almost 0: the output's own rounding is small, so that of the weights shows."""
    rng, kind = rng_of(case), numpy_dtype(dtype)
    query, key = (rng.standard_normal((1, 2, rows, 8)).astype(kind) for rows in (1, 64))
    value = rng.standard_normal((1, 2, 64, 8))
    plain = Case(query, key, value.astype(kind), seed=case.seed)
    # Kernels take another way where there is a bias; some keep the scale in the dtype, or in float32, where 0.3 is not.
    ways: dict[str, Any] = {"bias": rng.standard_normal((1, 2, 1, 64)).astype(kind), "scale": 0.3}
    for one in (plain, *(plain.but(**{name: ways[name]}) for name in sorted(implementation.claims & set(ways)))):
        conforms(implementation, one.but(value=(value - truth_of(one)[0].output.high).astype(kind)))


@clause(
    "IA-P-06",
    "positions beyond 2048 are not rounded to halves",
    needs={"bias", "position_bias"},
    dtypes=("float16", "bfloat16"),
    examples=4,
    bias="none",
    mask="none",
    least=2,
)
def far_positions(implementation: Implementation, case: Case) -> None:
    rng = rng_of(case)
    *_, H, M, N = case.scores_shape
    far = int(rng.integers(4001, 5000))
    near, keys = np.sort(rng.integers(0, N, M)), np.arange(N)
    real = (far + np.sort(rng.integers(0, 8 * N, M)) / 8).astype(np.float32)
    for queries, values in (
        (near, far + keys),  # far apart
        (far + near, keys),
        (far + near, far + keys),  # far from 0, near each other
        ((far + near).astype(np.int32), (far + keys).astype(np.int32)),
        (real, far + keys),
        (real, keys),
    ):
        for f in bent_functions(rng, H, int(values[0] - queries[0]), N):
            conforms(implementation, case.but(bias=PositionBias(f, queries, values)))


def bent_functions(
    rng: np.random.Generator, H: int, offset: int, N: int
) -> list[OffsetMLP | OffsetTable | LinearOffset]:
    """Functions that tell offsets near the one given from each other, in float32."""

    def normal(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32)

    kinks = offset + rng.integers(-N, N + 1, 6)
    sides = np.where(rng.random(6) < 0.5, -1.0, 1.0)
    w1, b1 = (array.astype(np.float32) for array in (sides, -sides * kinks))
    reach = 5100  # beyond all of them, and the same in every case
    return [
        OffsetMLP(w1, b1, normal(6, H) / 2, normal(H)),
        OffsetTable(normal(H, 2 * reach + 1)),
        LinearOffset(abs(normal(H)) / 2),
    ]


@clause(
    "IA-P-07",
    "a float32 bias beside halves is not rounded to them",
    needs={"bias", "wide_bias"},
    dtypes=("float16", "bfloat16"),
    bias="none",
    mask="none",
    least=2,
)
def wide_bias(implementation: Implementation, case: Case) -> None:
    # Halves near 300 are 1/4 (float16) and 2 (bfloat16) apart.
    bias = 300 + rng_of(case).standard_normal(case.scores_shape)
    conforms(implementation, case.but(bias=bias.astype(np.float32)))


@clause(
    "IA-P-08",
    "float16 products may exceed 65504",
    dtype="float16",
    telling=False,
    bias="none",
    mask="none",
    scale="none",
)
def large_products(implementation: Implementation, case: Case) -> None:
    rng = rng_of(case)
    arrays = [rng.standard_normal((1, 2, rows, 4)) for rows in (3, 5, 5)]
    for sign in (1, -1):
        # The large part is the same for all keys: in the softmax it is gone. Half of it is the score, and fits.
        query, key = arrays[0].copy(), arrays[1].copy()
        query[..., 0], key[..., 0] = 256.0, sign * 300.0
        halves = (array.astype(np.float16) for array in (query, key, arrays[2]))
        conforms(implementation, case.but(**dict(zip(("query", "key", "value"), halves, strict=True))))
