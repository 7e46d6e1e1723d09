"""Family F: what the operation computes (P11)."""

from __future__ import annotations

import numpy as np

from ._case import Case, rng_of
from ._clause import check_elements, clause, conforms, truth_of, within
from ._implementation import Failure, Implementation
from ._libraries import numpy_dtype
from ._oracle import Exact

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
    # Scores of tens as well, where an lse that was rounded to a half stands out.
    for one in (case, case.but(query=16 * case.query)):
        truth, bound = truth_of(one)
        result = implementation.run(one, return_lse=True)
        check_elements("lse", result.lse, truth.lse, bound.lse, one)
        check_elements("output", result.output, truth.output, bound.output, one)


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


@clause(
    "IA-F-13",
    "a triangular mask is taken as it stands",
    needs={"mask"},
    telling=False,
    examples=3,
    bias="none",
    mask="none",
    scale="any",
)
def triangular_masks(implementation: Implementation, case: Case) -> None:
    rng, kind = rng_of(case), numpy_dtype(case.dtype)
    for M, N in ((3, 5), (5, 3)) if implementation.few_shapes else ((3, 5), (5, 3), (4, 4)):
        query, key, value = (rng.standard_normal((2, 2, rows, 4)).astype(kind) for rows in (M, N, N))
        ones = np.ones((M, N), bool)
        lower = [np.tril(ones, k) for k in range(1 - M, N - 1)]
        upper = [np.triu(ones, k) for k in range(2 - M, N)]
        for mask in (*lower, *upper):
            rows_conform(implementation, case.but(query=query, key=key, value=value, mask=mask))


def rows_conform(implementation: Implementation, case: Case) -> None:
    """The rows to which the mask leaves a key are within the bound; the others are judged by IA-S-01."""
    truth, bound = truth_of(case)
    output = implementation.run(case).output
    left = np.broadcast_to(np.any(case.mask, axis=-1), case.output_shape[:-1])
    wanted = Exact(truth.output.high[left], truth.output.low[left])
    check_elements("output of the rows with a key", output[left], wanted, bound.output[left], case)


@clause(
    "IA-F-14",
    "the mask broadcasts to (..., H, M, N)",
    needs={"mask", "bias_broadcast"},
    telling=False,
    examples=4,
    bias="none",
    mask="none",
)
def mask_broadcasts(implementation: Implementation, case: Case) -> None:
    rng, kind = rng_of(case), numpy_dtype(case.dtype)
    M, N, Hk = 3, 5, 2
    H = 2 * Hk if "grouped" in implementation.claims else Hk
    # As many elements as heads, and not: three axes are (H, M, N) in both.
    for B in (H,) if implementation.few_shapes else (H, 3):
        query, key, value = (rng.standard_normal((B, *size, 4)).astype(kind) for size in ((H, M), (Hk, N), (Hk, N)))
        shapes = [(N,), (M, N), (H, M, N), (H, 1, N), (1, M, N), (B, H, M, N), (B, 1, 1, N), (B, 1, M, N), (1, H, M, N)]
        for shape in shapes:
            mask = rng.random(shape) < 0.5
            mask[..., int(rng.integers(N))] = True  # every row keeps a key
            conforms(implementation, case.but(query=query, key=key, value=value, mask=mask))


@clause(
    "IA-F-15",
    "a scale of 0 leaves the bias alone",
    needs={"scale", "bias"},
    bias="full",
    scale="none",
    least=2,
)
def scale_of_zero(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case.but(scale=0.0))


@clause(
    "IA-F-16",
    "a mask and a bias count together",
    needs={"mask", "bias"},
    bias="dense",
    mask="some",
    least=2,
)
def mask_and_bias(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
