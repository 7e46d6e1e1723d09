"""The catalogue of golden vectors: families F, E and L, as calls whose truth is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ._case import Case
from ._oracle import ball_array
from ._vectors_draw import Draw

__all__ = ["ALL", "HALVES", "QUESTIONS", "WIDE", "Question", "question"]

ALL = ("float64", "float32", "float16", "bfloat16")
WIDE, HALVES = ALL[:2], ALL[2:]


class Question(NamedTuple):
    """A call, and what is asked about it besides the output.

    ``grad`` asks for the gradients of <cotangent, output>, ``lse_grad`` adds <lse_cotangent, lse> to that.
    ``like`` is a call that has the same output, to all digits, and gives the bound: scores of the largest finite size
    are beyond the digits of the balls, and beyond a bound that says anything.
    """

    case: Case
    note: str = ""
    lse: bool = False
    grad: bool = False
    lse_grad: bool = False
    zero_cotangent: bool = False
    like: Case | None = None


# What asks about a clause gives cases or questions in a fixed order: their numbers are part of the ids.
Asking = Callable[[Draw], Iterator[Case | Question | None]]
QUESTIONS: dict[tuple[str, str], Asking] = {}


def question(label: str, dtypes: tuple[str, ...] = WIDE) -> Callable[[Asking], Asking]:
    """Register what asks about a clause. New questions come last; None keeps the number of one that is retired."""

    def register(asking: Asking) -> Asking:
        for dtype in dtypes:
            if (label, dtype) in QUESTIONS:
                raise ValueError(f"vectors of {label} in {dtype} are registered twice")
            QUESTIONS[label, dtype] = asking
        return asking

    return register


@question("IA-F-01", ALL)
def output(d: Draw):
    yield Question(d.case(), "the plainest call")
    yield Question(d.case(batch=(2,), Dv=3, bias=True), "a bias")
    yield Question(d.case(batch=(2,), H=4, Hk=2, Dv=3, bias=True, mask=True, scale=0.375), "everything", lse=True)
    yield Question(d.case(H=1, M=1, N=1, D=1, Dv=1), "one of everything")


@question("IA-F-02", ALL)
def default_scale(d: Draw):
    for D in (1, 3, 8, 16):
        yield Question(d.case(D=D, M=2), f"D = {D}")


@question("IA-F-03", ALL)
def given_scale(d: Draw):
    for scale in (0.125, 0.3, 2.0):
        yield Question(d.case(bias=True, scale=scale, M=2), f"scale {scale}")


@question("IA-F-04")
def bias_broadcasts(d: Draw):
    H, M, N = 2, 3, 5
    for shape in ((N,), (M, 1), (M, N), (H, 1, 1), (H, 1, N), (2, 1, 1, N), (1, 1, M, N), ()):
        yield Question(d.case(batch=(2,), H=H, M=M, N=N, bias=shape), f"bias of shape {shape}")


@question("IA-F-05", ALL)
def bias_per_head(d: Draw):
    yield d.case(H=3, bias=(3, 1, 5))


@question("IA-F-06", ALL)
def mask_polarity(d: Draw):
    yield d.case(mask=True)
    yield Question(d.case(N=9, mask=True), "more keys")


@question("IA-F-07", ALL)
def grouped_heads(d: Draw):
    yield Question(d.case(H=4, Hk=2), "2 query heads to a key head")
    yield Question(d.case(H=3, Hk=1), "all query heads to one key head")
    yield Question(d.case(H=6, Hk=2, bias=True, mask=True, M=2), "3 to each, a bias and a mask")


@question("IA-F-08", ALL)
def natural_lse(d: Draw):
    yield Question(d.case(), "", lse=True)
    yield Question(d.case(bias=True, mask=True, scale=0.3), "of the scores with scale and bias", lse=True)


@question("IA-F-09", ALL)
def value_width(d: Draw):
    yield Question(d.case(D=4, Dv=7), "wider")
    yield Question(d.case(D=4, Dv=1), "narrower")


@question("IA-F-10")
def form(d: Draw):
    yield Question(d.case(batch=(2,), H=3, M=4, N=6, D=2, Dv=5), "all sizes differ")


@question("IA-F-11")
def leading_axes(d: Draw):
    yield Question(d.case(batch=()), "none")
    yield Question(d.case(batch=(2, 3), M=2, N=3, bias=True), "two")
    yield Question(d.case(batch=(2, 1, 2), M=1, N=3), "three")


@question("IA-F-12", ALL)
def normalised(d: Draw):
    case = d.case(N=7, Dv=1, bias=True)
    yield Question(case.but(value=np.ones_like(case.value)), "values of 1")


@question("IA-F-13", ALL)
def triangles(d: Draw):
    for M, N in ((3, 5), (5, 3)):
        for corner in (0, N - M):
            mask = np.tri(M, N, corner, dtype=bool)
            yield Question(d.case(M=M, N=N).but(mask=mask), f"M = {M}, N = {N}, corner {corner}")


@question("IA-F-14")
def mask_broadcasts(d: Draw):
    for shape in ((5,), (3, 5), (2, 1, 5), (2, 1, 1, 5), (1, 1, 3, 5)):
        yield Question(d.case(batch=(2,), mask=shape), f"mask of shape {shape}")
    rows = np.asarray([[True], [False], [True]])
    yield Question(d.case().but(mask=rows), "mask of shape (3, 1): a row is on or off")


@question("IA-F-15", ALL)
def scale_zero(d: Draw):
    yield Question(d.case(bias=True, scale=0.0), "a bias")
    yield Question(d.case(scale=0.0), "the mean of the values")


@question("IA-F-16", ALL)
def mask_and_bias(d: Draw):
    yield Question(d.case(bias=True, mask=True), "", lse=True)
    yield Question(d.case(bias=(5,), mask=(3, 5)), "of different shapes")


@question("IA-E-01", ALL)
def zero_bias(d: Draw):
    case = d.case()
    yield case
    yield Question(case.but(bias=np.zeros(case.scores_shape, d.kind)), "a bias of 0")


@question("IA-E-02", ALL)
def log_prior(d: Draw):
    case = d.case()
    prior = 1 + d.below(63, *case.scores_shape)
    logarithms = np.vectorize(lambda p: float((p / 64).log()), otypes=[float])(ball_array(prior))
    yield Question(case.but(bias=d.cast(logarithms)), "logarithms of n / 64")


@question("IA-E-03", ALL)
def row_constant(d: Draw):
    case = d.case(bias=True)
    constant = d.below(33, 2, 3, 1) - 16
    yield case
    yield Question(case.but(bias=d.cast(case.bias.astype(np.float64) + constant)), "an integer more in each row")


@question("IA-E-04")
def keys_permuted(d: Draw):
    case, order = d.case(bias=True, N=6), np.asarray([4, 2, 0, 5, 1, 3])
    yield case
    permuted = case.but(key=case.key[..., order, :], value=case.value[..., order, :], bias=case.bias[..., order])
    yield Question(permuted, "keys 4, 2, 0, 5, 1, 3 of the one before")


@question("IA-E-05")
def queries_permuted(d: Draw):
    case, order = d.case(bias=True, M=4), np.asarray([2, 0, 3, 1])
    yield case
    permuted = case.but(query=case.query[..., order, :], bias=case.bias[..., order, :])
    yield Question(permuted, "queries 2, 0, 3, 1 of the one before")


@question("IA-E-06", ALL)
def key_twice(d: Draw):
    case = d.case()
    key, value = (np.concatenate([array, array[..., 1:2, :]], axis=-2) for array in (case.key, case.value))
    yield Question(case.but(key=key, value=value), "key 1 comes twice")
    bias = np.zeros(5)
    bias[1] = float(ball_array(2.0).item().log())
    yield Question(case.but(bias=d.cast(bias)), "log 2 more at key 1")


@question("IA-E-07", ALL)
def parts(d: Draw):
    case = d.case(N=7, bias=True)
    for begin, end in ((0, 7), (0, 3), (3, 7)):
        part = case.but(
            key=case.key[..., begin:end, :], value=case.value[..., begin:end, :], bias=case.bias[..., begin:end]
        )
        yield Question(part, f"keys {begin} to {end - 1}", lse=True)


@question("IA-E-08")
def padding(d: Draw):
    case = d.case()
    key, value = (np.concatenate([array, d.numbers(1, 2, 3, 4)], axis=-2) for array in (case.key, case.value))
    yield case
    yield Question(case.but(key=key, value=value, mask=np.arange(8) < 5), "3 keys of padding behind a mask")


@question("IA-E-09", ALL)
def heads_apart(d: Draw):
    case = d.case(H=3)
    others = [array.copy() for array in (case.query, case.key, case.value)]
    for array in others:
        array[:, 1] = np.nan
    yield Question(case.but(query=others[0], key=others[1], value=others[2]), "head 1 holds nan, the others do not")


@question("IA-E-10", ALL)
def batch_apart(d: Draw):
    case = d.case(batch=(3,), H=1)
    others = [array.copy() for array in (case.query, case.key, case.value)]
    for array in others:
        array[1] = np.nan
    yield Question(case.but(query=others[0], key=others[1], value=others[2]), "element 1 holds nan, the others do not")


@question("IA-E-11", ALL)
def peaked(d: Draw):
    bias = np.zeros(5)
    bias[3] = 1000.0
    yield Question(d.case().but(bias=bias.astype(d.kind)), "1000 at key 3")


@question("IA-E-12")
def linear_in_values(d: Draw):
    case = d.case(M=2)
    other = d.numbers(*case.value.shape)
    mixed = d.cast(2 * case.value.astype(np.float64) - other.astype(np.float64) / 2)
    yield Question(case, "v")
    yield Question(case.but(value=other), "w")
    yield Question(case.but(value=mixed), "2 v - w / 2, rounded")


@question("IA-E-13", ALL)
def equal_values(d: Draw):
    case = d.case(N=7, bias=True)
    yield Question(case.but(value=np.repeat(case.value[..., :1, :], 7, axis=-2)), "one value at all keys")


@question("IA-E-14", ALL)
def mask_as_bias(d: Draw):
    case = d.case(mask=True)
    yield case
    bias = np.where(case.mask, 0.0, -np.inf).astype(d.kind)
    yield Question(case.but(mask=None, bias=bias), "the mask as a bias of -inf")


@question("IA-E-15")
def rows_alone(d: Draw):
    case = d.case(M=4, bias=True)
    yield case
    for i in (0, 3):
        alone = case.but(query=case.query[..., i : i + 1, :], bias=case.bias[..., i : i + 1, :])
        yield Question(alone, f"row {i} of the first")


@question("IA-E-16", ALL)
def any_number_of_keys(d: Draw):
    sizes = (2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
    for N in sizes if d.dtype == "float32" else (2, 17, 33, 64, 129, 257):
        yield Question(d.case(H=1, M=1, N=N, D=2, Dv=2), f"N = {N}")


@question("IA-E-17", ALL)
def any_number_of_queries(d: Draw):
    sizes = (2, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257)
    for M in sizes if d.dtype == "float32" else (2, 17, 33, 64, 129):
        yield Question(d.case(H=1, M=M, N=3, D=2, Dv=2), f"M = {M}")


@question("IA-E-18", ALL)
def long_rows(d: Draw):
    """Scores of +-4 at most, and much larger ones late: a running maximum changes, what was summed is rescaled."""
    for N, spikes in ((515, (130, 389, 514)), (2050, (1024, 1031, 2049)))[: 2 if d.dtype == "float32" else 1]:
        case = d.case(H=1, M=1, N=N, D=1, Dv=1, bias=(N,))
        bias = case.bias.astype(np.float64)
        for height, at in enumerate(spikes):
            bias[at] += 6.0 + 2.0 * height
        yield Question(case.but(bias=d.cast(bias)), f"N = {N}, spikes at {spikes}", lse=True)


@question("IA-L-09")
def equal_sizes(d: Draw):
    yield Question(d.case(batch=(3,), H=3, M=3, N=3, D=3, Dv=3, bias=True), "B = H = M = N = D = Dv")
