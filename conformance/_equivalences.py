"""Family E: calls that must agree with each other."""

from __future__ import annotations

import math

import numpy as np

from ia_core import AttentionState, merge_states

from ._case import Case, rng_of
from ._clause import check_elements, clause, conforms, draw_seed, profile, truth_of, within
from ._implementation import Implementation
from ._libraries import numpy_dtype
from ._oracle import Exact
from ._truth import wide_truth_of

__all__: list[str] = []


def agree(implementation: Implementation, one: Case, other: Case, what: str) -> None:
    """Two calls have the same output, within the sum of their bounds, and the first one is right."""
    wanted, bound = conforms(implementation, one)
    within(what, implementation.run(other).output, wanted, bound + truth_of(other)[1].output, other)


def full_bias(case: Case) -> np.ndarray:
    """A dense bias of the scores' shape, drawn from the case's seed."""
    return rng_of(case).standard_normal(case.scores_shape).astype(case.query.dtype)


@clause("IA-E-01", "a bias of zeros is standard attention", needs={"bias"}, bias="none")
def zero_bias(implementation: Implementation, case: Case) -> None:
    agree(implementation, case, case.but(bias=np.zeros(case.scores_shape, case.query.dtype)), "output with f = 0")


@clause("IA-E-02", "a bias of log p is a prior p over the keys", needs={"bias"}, bias="none", mask="none")
def log_prior(implementation: Implementation, case: Case) -> None:
    prior = rng_of(case).uniform(0.05, 1.0, case.scores_shape)
    bias = np.log(prior / prior.sum(axis=-1, keepdims=True)).astype(case.query.dtype)
    with_bias = case.but(bias=bias)
    truth, bound = truth_of(case)
    # Bayes: alpha_ij = p_ij softmax_ij / sum_l p_il softmax_il, with p as the bias in the case's dtype has it.
    weights = np.exp(bias.astype(np.float64)) * truth.weights
    weights = weights / weights.sum(axis=-1, keepdims=True)
    group = case.query.shape[-3] // case.key.shape[-3]
    value = np.repeat(case.value.astype(np.float64), group, axis=-3)
    wanted = weights @ value
    slack = 64 * 2.0**-53 * (weights @ np.abs(value))  # of this computation in float64
    bound = truth_of(with_bias)[1].output + slack
    within("output under a prior", implementation.run(with_bias).output, wanted, bound, with_bias)


@clause("IA-E-03", "a constant added to a row of the bias changes nothing", needs={"bias"}, bias="none")
def row_constant(implementation: Implementation, case: Case) -> None:
    bias = full_bias(case)
    shift = rng_of(case).integers(-8, 8, (*case.scores_shape[:-1], 1))
    # Sums of a few bits: exact in every dtype, so that both calls have the same scores.
    bias = np.round(bias.astype(np.float64) * 8) / 8
    one, other = (case.but(bias=b.astype(case.query.dtype)) for b in (bias, bias + shift))
    agree(implementation, one, other, "output after a shift of the rows")


@clause("IA-E-04", "the order of the keys does not matter", needs={"bias"}, bias="none", mask="none", least=2)
def key_order(implementation: Implementation, case: Case) -> None:
    order = rng_of(case).permutation(case.key.shape[-2])
    case = case.but(bias=full_bias(case))
    other = case.but(key=case.key[..., order, :], value=case.value[..., order, :], bias=case.bias[..., order])
    agree(implementation, case, other, "output with permuted keys")


@clause("IA-E-05", "permuted queries give permuted outputs", needs={"bias"}, bias="none", mask="none", least=2)
def query_order(implementation: Implementation, case: Case) -> None:
    order = rng_of(case).permutation(case.query.shape[-2])
    case = case.but(bias=full_bias(case))
    other = case.but(query=case.query[..., order, :], bias=case.bias[..., order, :])
    wanted, bound = (array[..., order, :] for array in conforms(implementation, case))
    bounds = bound + truth_of(other)[1].output
    within("output with permuted queries", implementation.run(other).output, wanted, bounds, other)


@clause("IA-E-06", "a key given twice counts as log 2 added to its bias", needs={"bias"}, bias="none", mask="none")
def duplicated_key(implementation: Implementation, case: Case) -> None:
    bias = full_bias(case)
    twice = case.but(
        key=np.concatenate([case.key, case.key[..., :1, :]], axis=-2),
        value=np.concatenate([case.value, case.value[..., :1, :]], axis=-2),
        bias=np.concatenate([bias, bias[..., :1]], axis=-1),
    )
    added = bias.copy()
    added[..., 0] = (bias[..., 0].astype(np.float64) + math.log(2)).astype(bias.dtype)
    once = case.but(bias=added)
    # log 2 is rounded to the dtype of the bias: that much the true outputs themselves differ.
    apart = np.abs(truth_of(twice)[0].output.high - truth_of(once)[0].output.high)
    wanted, bound = conforms(implementation, once)
    bounds = bound + truth_of(twice)[1].output + 2 * apart
    within("output with a key given twice", implementation.run(twice).output, wanted, bounds, twice)


@clause(
    "IA-E-07", "parts of the keys merge by their lse to the whole", needs={"lse"}, bias="none", mask="none", least=2
)
def merged_parts(implementation: Implementation, case: Case) -> None:
    cut = int(rng_of(case).integers(1, case.key.shape[-2]))
    truth, bound = truth_of(case)
    states, slack = [], 0.0
    for part in (slice(0, cut), slice(cut, None)):
        half = case.but(key=case.key[..., part, :], value=case.value[..., part, :])
        half_truth, half_bound = truth_of(half)
        result = implementation.run(half, return_lse=True)
        states.append(AttentionState(result.output, result.lse))
        share = np.exp(half_truth.lse.high - truth.lse.high)[..., None]
        off = np.abs(half_truth.output.high - truth.output.high)
        slack = slack + share * (half_bound.output + off * half_bound.lse[..., None])
    merged = merge_states(*states)
    bounds = 1.01 * slack + bound.output  # the first order, the small rest, and the whole's own rounding
    check_elements("merged output", merged.output, truth.output, bounds, case)


@clause("IA-E-08", "padding that is masked changes nothing", needs={"mask"}, bias="none", mask="none")
def padding(implementation: Implementation, case: Case) -> None:
    rng, pad = rng_of(case), 3
    N = case.key.shape[-2]

    def padded(array: np.ndarray) -> np.ndarray:
        extra = rng.standard_normal((*array.shape[:-2], pad, array.shape[-1])).astype(array.dtype)
        return np.concatenate([array, extra], axis=-2)

    mask = np.broadcast_to(np.arange(N + pad) < N, (*case.scores_shape[:-1], N + pad))
    agree(implementation, case, case.but(key=padded(case.key), value=padded(case.value), mask=mask), "padded output")


@clause("IA-E-09", "a head does not depend on the others", bias="none", mask="none", grouped=False, least_heads=2)
def head_independence(implementation: Implementation, case: Case) -> None:
    rng, Hk = rng_of(case), case.key.shape[-3]
    group = case.query.shape[-3] // Hk
    changed = {}
    for name in ("query", "key", "value"):
        array = getattr(case, name).copy()
        kept = group if name == "query" else 1
        array[..., kept:, :, :] = rng.standard_normal(array[..., kept:, :, :].shape).astype(array.dtype)
        changed[name] = array
    other = case.but(**changed)
    keep = (Ellipsis, slice(0, group), slice(None), slice(None))
    one, bound = (array[keep] for array in conforms(implementation, case))
    within("output of the first head", implementation.run(other).output[keep], one, 2 * bound, other)


@clause("IA-E-10", "a batch element does not depend on the others", bias="none", mask="none", least_batch=1)
def batch_independence(implementation: Implementation, case: Case) -> None:
    rng = rng_of(case)
    changed = {}
    for name in ("query", "key", "value"):
        array = getattr(case, name).copy()
        array[1:] = rng.standard_normal(array[1:].shape).astype(array.dtype)
        changed[name] = array
    other = case.but(**changed)
    one, bound = (array[:1] for array in conforms(implementation, case))
    within("output of the first element", implementation.run(other).output[:1], one, 2 * bound, other)


@clause("IA-E-11", "a huge bias addresses one value", needs={"bias"}, bias="none", mask="none", least=2)
def one_value(implementation: Implementation, case: Case) -> None:
    N = case.key.shape[-2]
    chosen = rng_of(case).integers(0, N, case.scores_shape[:-1])
    bias = np.where(np.arange(N) == chosen[..., None], 1000.0, 0.0).astype(case.query.dtype)
    case = case.but(bias=bias)
    group = case.query.shape[-3] // case.key.shape[-3]
    value = np.repeat(case.value, group, axis=-3).astype(np.float64)
    wanted = np.take_along_axis(value, chosen[..., None], axis=-2)
    within("output", implementation.run(case).output, wanted, truth_of(case)[1].output, case)


@clause("IA-E-12", "the output is linear in the values")
def linear_in_values(implementation: Implementation, case: Case) -> None:
    second = rng_of(case).standard_normal(case.value.shape).astype(case.value.dtype)
    other = case.but(value=second)
    # Exact in every dtype: both factors are powers of two, the sum is taken of rounded values.
    mixed = (2 * case.value.astype(np.float64) - 0.5 * second.astype(np.float64)).astype(case.value.dtype)
    rounding = np.abs(mixed.astype(np.float64) - (2 * case.value.astype(np.float64) - 0.5 * second.astype(np.float64)))
    both = case.but(value=mixed)
    truth, _ = truth_of(case)
    group = case.query.shape[-3] // case.key.shape[-3]
    apart = truth.weights @ np.repeat(rounding, group, axis=-3)
    (one, bound_one), (two, bound_two) = (conforms(implementation, c) for c in (case, other))
    wanted = 2 * one - 0.5 * two
    bounds = 2 * bound_one + 0.5 * bound_two + truth_of(both)[1].output + apart
    within("output of 2 v - w / 2", implementation.run(both).output, wanted, bounds, both)


@clause("IA-E-13", "equal values come back unchanged", least=2)
def constant_values(implementation: Implementation, case: Case) -> None:
    case = case.but(value=np.broadcast_to(case.value[..., :1, :], case.value.shape).copy())
    group = case.query.shape[-3] // case.key.shape[-3]
    value = np.repeat(case.value[..., :1, :], group, axis=-3).astype(np.float64)
    wanted = np.broadcast_to(value, case.output_shape)
    within("output", implementation.run(case).output, wanted, truth_of(case)[1].output, case)


@clause("IA-E-14", "a mask is a bias of -inf", needs={"mask", "bias"}, bias="none", mask="some", least=2)
def mask_is_minus_inf(implementation: Implementation, case: Case) -> None:
    bias = np.where(np.broadcast_to(case.mask, case.scores_shape), 0.0, -np.inf).astype(case.query.dtype)
    agree(implementation, case, case.but(mask=None, bias=bias), "output with -inf in place of the mask")


@clause("IA-E-15", "tiles of queries do not matter", least=2)
def query_tiles(implementation: Implementation, case: Case) -> None:
    whole, bound = conforms(implementation, case)
    for i in range(case.query.shape[-2]):
        rows = (Ellipsis, slice(i, i + 1), slice(None))
        cut = {
            name: None if array is None else (array[rows] if array.ndim >= 2 and array.shape[-2] != 1 else array)
            for name, array in (("bias", case.bias), ("mask", case.mask))
        }
        tile = case.but(query=case.query[rows], **cut)
        within(f"row {i} alone", implementation.run(tile).output, whole[rows], 2 * bound[rows], tile)


@clause("IA-E-16", "any number of keys", telling=False, examples=1, bias="none", mask="none", scale="none")
def any_number_of_keys(implementation: Implementation, case: Case) -> None:
    for N in sizes(implementation):
        for one in plain_and_biased(implementation, case, 2, N):
            conforms_widely(implementation, one)


def conforms_widely(implementation: Implementation, case: Case) -> None:
    """The output is within the bound of the truth, which is computed in float64."""
    truth, bound = wide_truth_of(case)
    check_elements("output", implementation.run(case).output, truth.output, bound.output, case)


@clause("IA-E-17", "any number of queries", telling=False, examples=1, bias="none", mask="none", scale="none")
def any_number_of_queries(implementation: Implementation, case: Case) -> None:
    counts = [*sizes(implementation), 1030]  # just beyond pieces of 1024, which libraries cut queries into
    # Rows do not see each other, so the truth about the longest call is that about all.
    for longest in plain_and_biased(implementation, case, counts[-1], 5):
        truth, bound = wide_truth_of(longest)
        for M in counts:
            rows = (Ellipsis, slice(0, M), slice(None))
            cut = {n: None if (array := getattr(longest, n)) is None else array[rows] for n in ("bias", "mask")}
            one = longest.but(query=longest.query[rows], **cut)
            wanted = Exact(truth.output.high[rows], truth.output.low[rows])
            check_elements("output", implementation.run(one).output, wanted, bound.output[rows], one)


def sizes(implementation: Implementation) -> list[int]:
    """Numbers of rows: in full every one up to a tile of 256 and one more; in quick powers of two and some at random.

    What a compiler would have to compile anew for each is kept short.
    """
    around = {2**k + d for k in range(9) for d in (-1, 0, 1)} - {0}
    if implementation.few_shapes:
        return sorted(around) if profile() == "full" else [33, 63, 128, 257]
    if profile() == "full":
        return list(range(1, 258))
    return sorted(around | set(np.random.default_rng(draw_seed()).integers(6, 256, 8).tolist()))


def plain_and_biased(implementation: Implementation, case: Case, M: int, N: int) -> list[Case]:
    """A call with these sizes, and one with a bias and a mask of all its numbers, as far as they are claimed.

    The arrays depend on the sizes alone, so that the truth about them is computed once for all implementations.
    """
    rng, kind = np.random.default_rng([16, M, N]), numpy_dtype(case.dtype)

    def fill(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(kind)

    plain = case.but(query=fill(1, 2, M, 4), key=fill(1, 2, N, 4), value=fill(1, 2, N, 4), scale=None)
    plain.value[..., -1, :] *= 8  # the last key stands out among hundreds, where remainders are lost
    bias, mask = fill(1, 2, M, N), rng.random((1, 2, M, N)) < 0.75
    mask[..., -1] = True  # the last key counts in every row
    extras = {"bias": bias, "mask": mask}
    claimed = {name: array for name, array in extras.items() if name in implementation.claims}
    return [plain, plain.but(**claimed)] if claimed else [plain]


@clause(
    "IA-E-18",
    "long rows, wherever their largest scores stand",
    telling=False,
    examples=1,
    bias="none",
    mask="none",
    scale="none",
)
def long_rows(implementation: Implementation, case: Case) -> None:
    # 4100 is just beyond pieces of 4096, which libraries cut keys into.
    counts = [1025, 2050, 4100] if profile() == "full" or not implementation.few_shapes else [1025, 4100]
    counts += [513, 2047] if profile() == "full" and not implementation.few_shapes else []
    for N in counts:
        scores = uneven_scores(N)
        kind = numpy_dtype(case.dtype)
        # A query of 2 along one axis reads one number of the key: with 1 / sqrt(4), the score itself.
        query = np.broadcast_to(2 * np.eye(4), (1, 2, 4, 4)).astype(kind)
        key = np.swapaxes(scores, -1, -2)[None].astype(kind)
        value = np.random.default_rng([18, N]).standard_normal((1, 2, N, 4)).astype(kind)
        conforms_widely(implementation, case.but(query=query, key=key, value=value))


def uneven_scores(N: int) -> np.ndarray:
    """Scores (2, 4, N) that move a running maximum about: late, early, often, by little and by much."""
    rng, j = np.random.default_rng([17, N]), np.arange(N)
    noise = rng.standard_normal((8, N))
    rising, falling = 6 * j / N, 6 * (N - j) / N
    late, early = 1000.0 * (j == N - 2), 1000.0 * (j == 1)
    spike = 7.0 * (j == N - 2)
    steps = 20.0 * (8 * j // N)
    waves = 5 * np.sin(j / 40)
    nothing = np.where(j < N // 3, -1000.0, 0.0)
    rows = np.stack([rising, spike, late, early, falling, steps, waves, nothing])
    return (rows + noise).reshape(2, 4, N)
