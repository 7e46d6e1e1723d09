"""Family S: special values and edges."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ._case import Case, rng_of
from ._clause import check_elements, clause, conforms, truth_of, within
from ._implementation import Failure, Implementation
from ._layout import STRIDED, conforms_placed, embedded

__all__: list[str] = []


@clause("IA-S-01", "a row that the mask empties gives 0", needs={"mask"}, mask="rows", least=2)
def masked_row(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-S-02", "a row whose bias is -inf everywhere gives 0", needs={"bias"}, bias="none", mask="none", least=2)
def minus_inf_row(implementation: Implementation, case: Case) -> None:
    bias = np.zeros(case.scores_shape, case.query.dtype)
    bias[..., int(rng_of(case).integers(case.query.shape[-2])), :] = -np.inf
    conforms(implementation, case.but(bias=bias))


@clause("IA-S-03", "a row with nothing to attend to has the lse -inf", needs={"mask", "lse"}, mask="rows", least=2)
def masked_row_lse(implementation: Implementation, case: Case) -> None:
    truth, bound = truth_of(case)
    lse = implementation.run(case, return_lse=True).lse
    empty = np.isneginf(truth.lse.high)
    # The lse of other rows is the business of IA-F-08.
    within("lse", np.where(empty, lse, truth.lse.high), truth.lse.high, bound.lse, case)


@clause("IA-S-04", "no keys give 0", needs={"empty"}, bias="none", mask="none")
def no_keys(implementation: Implementation, case: Case) -> None:
    case = case.but(key=case.key[..., :0, :], value=case.value[..., :0, :])
    within("output", implementation.run(case).output, np.zeros(case.output_shape), 0.0, case)


@clause(
    "IA-S-05",
    "no queries and an empty batch give an empty output",
    needs={"empty"},
    bias="none",
    mask="none",
    least_batch=1,
)
def no_queries(implementation: Implementation, case: Case) -> None:
    for empty in (
        case.but(query=case.query[..., :0, :]),
        case.but(query=case.query[:0], key=case.key[:0], value=case.value[:0]),
    ):
        implementation.run(empty)  # raises Failure on a wrong shape


@clause(
    "IA-S-06",
    "what no query may attend to has no influence, whatever it holds",
    needs={"mask"},
    bias="none",
    mask="none",
    least=2,
)
def poison(implementation: Implementation, case: Case) -> None:
    rng, N = rng_of(case), case.key.shape[-2]
    hidden = int(rng.integers(N))
    mask = np.broadcast_to(np.arange(N) != hidden, case.scores_shape)
    clean, bound = conforms(implementation, case.but(mask=mask))
    for poisoned in (np.nan, np.inf, -np.inf):
        key, value = case.key.copy(), case.value.copy()
        key[..., hidden, :] = poisoned
        value[..., hidden, :] = poisoned
        other = case.but(mask=mask, key=key, value=value)
        within(f"output with {poisoned} behind the mask", implementation.run(other).output, clean, 2 * bound, other)


@clause("IA-S-07", "a nan that is attended to reaches the output", bias="none", mask="none")
def nan_reaches(implementation: Implementation, case: Case) -> None:
    rng = rng_of(case)
    # Also the shape that fused kernels take, where an implementation chooses by shape: one batch axis, Dv = D.
    query, key, value = (rng.standard_normal((2, 2, 3, 4)).astype(case.query.dtype) for _ in range(3))
    for one in (case, Case(query, key, value, seed=case.seed)):
        for name in ("query", "key", "value"):
            array = getattr(one, name).copy()
            array[..., 0, 0] = np.nan
            other = one.but(**{name: array})
            output = implementation.run(other).output
            touched = {"query": output[..., 0, :], "key": output, "value": output[..., 0]}[name]
            if not np.all(np.isnan(touched)):
                raise Failure(f"a nan in an attended {name} must make the output nan; got {touched.ravel()[:3]}", other)


@clause("IA-S-08", "one key gives its value", bias="none", mask="none")
def one_key(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case.but(key=case.key[..., :1, :], value=case.value[..., :1, :]))


@clause("IA-S-09", "scores of thousands do not overflow", needs={"bias"}, bias="none", mask="none", least=2)
def large_scores(implementation: Implementation, case: Case) -> None:
    sign = np.where(rng_of(case).random(case.scores_shape) < 0.5, -1.0, 1.0)
    for size in (1e4, -1e4):
        conforms(implementation, case.but(bias=(size + 10 * sign).astype(case.query.dtype)))
    conforms(implementation, case.but(bias=(1e4 * sign).astype(case.query.dtype)))


@clause("IA-S-10", "a bias of -inf takes its key away", needs={"bias"}, bias="none", mask="none", least=2)
def minus_inf_entries(implementation: Implementation, case: Case) -> None:
    bias = rng_of(case).standard_normal(case.scores_shape)
    bias[..., ::2] = -np.inf
    conforms(implementation, case.but(bias=bias.astype(case.query.dtype)))


@clause("IA-S-11", "memory behind a slice is not read", libraries=STRIDED)
def guarded(implementation: Implementation, case: Case) -> None:
    rows = {"BHMD": -2, "BMHD": -3}[implementation.layout]

    def in_longer(before: int, after: int) -> None:
        def place(name: str, array: np.ndarray) -> Any:
            axes = {"bias": (-2, -1), "mask": (-2, -1)}.get(name, (rows,))
            return embedded(implementation, array, {axis: (before, 1, after) for axis in axes})

        what = f"output of slices with {before} rows of nan before and {after} behind them"
        conforms_placed(implementation, case, place, what)

    in_longer(0, 64)
    in_longer(3, 5)


@clause(
    "IA-S-12",
    "the smallest finite number is an ordinary bias",
    needs={"bias"},
    bias="none",
    mask="none",
    least=2,
)
def lowest_bias(implementation: Implementation, case: Case) -> None:
    rng = rng_of(case)
    *_, M, N = case.scores_shape
    row = int(rng.integers(M))
    lowest = range_of(case).min
    query, bias = case.query.copy(), rng.standard_normal(case.scores_shape).astype(case.query.dtype)
    # A query of zeros: every score of the row is the bias itself, so nothing is rounded and all are equal.
    query[..., row, :] = 0
    taken = rng.random(case.scores_shape) < 0.5
    taken[..., int(rng.integers(N))] = False
    bias[..., row, :] = 0
    given, same = (np.where(taken, other, bias).astype(bias.dtype) for other in (lowest, -np.inf))
    given[..., row, :] = lowest
    same[..., row, :] = 0
    truth, bound = truth_of(case.but(query=query, bias=same))
    other = case.but(query=query, bias=given)
    check_elements("output", implementation.run(other).output, truth.output, bound.output, other)


@clause("IA-S-13", "no heads give an empty output", needs={"empty"}, telling=False, bias="none", mask="none")
def no_heads(implementation: Implementation, case: Case) -> None:
    names = ("query", "key", "value")
    # It raises Failure on a wrong shape.
    implementation.run(case.but(**{name: getattr(case, name)[..., :0, :, :] for name in names}))


@clause("IA-S-14", "an infinity in an attended value reaches the output", bias="none", mask="none")
def infinity_reaches(implementation: Implementation, case: Case) -> None:
    at = int(rng_of(case).integers(case.key.shape[-2]))
    for infinity in (np.inf, -np.inf):
        value = case.value.copy()
        value[..., at, 0] = infinity
        other = case.but(value=value)
        # 0 times inf, and a value split in two parts, give nan.
        touched = implementation.run(other).output[..., 0]
        if not np.all(np.isnan(touched) | (touched == infinity)):
            raise Failure(f"{infinity} in an attended value must reach its column; got {touched.ravel()[:3]}", other)


@clause("IA-S-15", "subnormal inputs count as what they are, or as 0", bias="none", mask="none", scale="none", least=2)
def subnormal(implementation: Implementation, case: Case) -> None:
    kind = case.query.dtype
    tiny = float(range_of(case).smallest_normal)

    def below(array: np.ndarray) -> np.ndarray:
        return np.clip(array.astype(np.float64) / 4, -0.99, 0.99) * tiny

    def large(array: np.ndarray) -> np.ndarray:
        return np.clip(array.astype(np.float64), -4, 4) / 8 / tiny

    for name, changed in (
        ("values", {"value": below(case.value)}),
        ("queries", {"query": below(case.query), "key": large(case.key)}),
        ("keys", {"query": large(case.query), "key": below(case.key)}),
    ):
        arrays = {argument: array.astype(kind) for argument, array in changed.items()}
        other = case.but(**arrays)
        flushed = other.but(**{a: np.where(np.abs(x) < tiny, 0, x).astype(kind) for a, x in arrays.items()})
        # In float32 the subnormal numbers of float16 are ordinary ones.
        as_it_stands_or_flushed(implementation, other, flushed if kind != np.float16 else other, name)


def as_it_stands_or_flushed(implementation: Implementation, case: Case, flushed: Case, name: str) -> None:
    """The output is that of either case, as a whole."""
    output = implementation.run(case).output
    truths = [truth_of(one) for one in (case, flushed)]
    truth, bound = min(truths, key=lambda pair: float(np.max(pair[0].output.error_of(output) / pair[1].output)))
    check_elements(f"output of subnormal {name}", output, truth.output, bound.output, case)


def range_of(case: Case) -> ml_dtypes.finfo:
    """The numbers that there are: those of the dtype, unless it is declared to be computed in float32."""
    return ml_dtypes.finfo(np.float32 if case.arithmetic == "float32" else case.query.dtype)
