"""Family S: special values and edges."""

from __future__ import annotations

import numpy as np

from ._case import Case, rng_of
from ._clause import clause, conforms, truth_of, within
from ._implementation import Failure, Implementation

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
    within("lse", lse, truth.lse.high, bound.lse, case)


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
