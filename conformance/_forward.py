"""Family F: what the operation computes (P11)."""

from __future__ import annotations

import numpy as np

from ._case import Case
from ._clause import check_elements, clause, conforms, truth_of, within
from ._implementation import Failure, Implementation

__all__: list[str] = []


@clause("IA-F-01", "the output is softmax(scale q k^T + bias) v")
def output(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause(
    "IA-F-02", "the default scale is 1 / sqrt(D)", bias="none", mask="none", scale="none", widths=(2, 4, 8), least=2
)
def default_scale(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause(
    "IA-F-03",
    "a scale multiplies the products once, and the bias is added after it",
    needs={"scale", "bias"},
    bias="full",
    mask="none",
    scale="given",
    least=2,
)
def given_scale(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause(
    "IA-F-04",
    "the bias broadcasts to (..., H, M, N)",
    needs={"bias", "bias_broadcast"},
    bias="dense",
    mask="none",
    least=2,
)
def bias_broadcasts(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause(
    "IA-F-05", "each head has its own bias", needs={"bias"}, bias="per_head_keys", mask="none", least=2, least_heads=2
)
def bias_per_head(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-F-06", "the mask is True where attention is allowed", needs={"mask"}, mask="some", least=2)
def mask_polarity(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause(
    "IA-F-07", "query head h reads key head h // (H / Hk)", needs={"grouped"}, grouped=True, bias="none", mask="none"
)
def grouped_heads(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-F-08", "the lse is the natural logarithm of the sum of exponentials", needs={"lse"})
def natural_lse(implementation: Implementation, case: Case) -> None:
    truth, bound = truth_of(case)
    result = implementation.run(case, return_lse=True)
    check_elements("lse", result.lse, truth.lse, bound.lse, case)
    check_elements("output", result.output, truth.output, bound.output, case)


@clause("IA-F-09", "values may have a width of their own", needs={"value_width"}, bias="none", mask="none")
def value_width(implementation: Implementation, case: Case) -> None:
    width = case.value.shape[-1]
    wide = np.concatenate([case.value] * 2, axis=-1)[..., : width + 1]
    conforms(implementation, case.but(value=wide))


@clause("IA-F-10", "the output has the shape (..., H, M, Dv) and the dtype of query")
def form(implementation: Implementation, case: Case) -> None:
    dtype = implementation.run(case).dtype
    if dtype != case.dtype:
        raise Failure(f"the output must be {case.dtype} as query is; got {dtype}", case)


@clause("IA-F-11", "any number of leading axes", needs={"batch_axes"}, bias="none", mask="none")
def leading_axes(implementation: Implementation, case: Case) -> None:
    names = ("query", "key", "value")
    first = case.but(**{name: getattr(case, name)[(0,) * (case.query.ndim - 3)] for name in names})
    again = first.but(query=-first.query, value=2 * first.value)
    wanted, bound = (
        np.stack(pair) for pair in zip(*(conforms(implementation, c) for c in (first, again)), strict=True)
    )
    for axes in ((2,), (1, 2), (2, 1)):

        def lift(pair: np.ndarray, axes: tuple[int, ...] = axes) -> np.ndarray:
            return pair.reshape(*axes, *pair.shape[1:])

        lifted = first.but(**{name: lift(np.stack([getattr(first, name), getattr(again, name)])) for name in names})
        got = implementation.run(lifted).output
        within(f"output with leading axes {axes}", got, lift(wanted), 2 * lift(bound), lifted)


@clause("IA-F-12", "the weights are normalised over the keys", needs={"value_width"}, bias="none", mask="none", least=2)
def normalised_over_keys(implementation: Implementation, case: Case) -> None:
    # The identity as values hands the weights themselves out.
    N = case.key.shape[-2]
    eye = np.broadcast_to(np.eye(N), (*case.key.shape[:-1], N)).astype(case.query.dtype)
    case = case.but(value=eye)
    truth, bound = truth_of(case)
    weights = implementation.run(case).output
    check_elements("weights", weights, truth.output, bound.output, case)
    total = np.sum(bound.output, axis=-1)
    within("sum of the weights", weights.sum(axis=-1), np.ones(total.shape), total, case)
