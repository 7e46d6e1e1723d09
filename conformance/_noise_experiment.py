"""Experiments with noise: two-point values that every dtype holds, attention weights that are known, and limits.

Signal and noise take two values each, mean - 1 and mean + 1 or -sigma and sigma: the laws ask for means, variances and
independence, and such numbers are exact in every dtype. Let X = sum_j a_j e_j with independent signs e_j, so that
E X^2 = S2 = sum_j a_j^2. Since cosh(t) <= exp(t^2 / 2) and E X^4 <= 3 S2^2, for independent such X_k, weights w_k of
either sign and every admissible t > 0,

    log E exp(t sum_k w_k (X_k^2 - S2_k))  <=  V t^2 / (1 - 2 t w_max),
    V = sum over positive w of (w_k S2_k)^2 + 3/2 sum over negative w of (w_k S2_k)^2,  w_max = the largest w_k S2_k

(above as sums of chi-square type: Laurent and Massart, Annals of Statistics 28, 2000, Lemma 1; below as nonnegative
variables: Maurer, JIPAM 4, 2003, article 15). Hence the sum exceeds its mean by 2 sqrt(V tau) + 2 w_max tau with a
probability of at most exp(-tau). It is no approximation: the rate of false alarms holds for every number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._case import Case
from ._clause import draw_seed, within
from ._implementation import Implementation
from ._libraries import numpy_dtype
from ._oracle import Forward
from ._tolerance import average_bound, rounding_of
from ._truth import truth_of

__all__ = [
    "ALARM",
    "Called",
    "Energy",
    "Setting",
    "exceeds",
    "grid_mean",
    "holds",
    "mean_times_signs",
    "setting",
    "signs",
    "trials",
]

# What the test of one clause in one dtype may take for a broken law by chance.
ALARM = 1e-6
HEADS, ROWS, KEYS = 2, 4, 8
# Standard deviations of the scores, row by row: equal weights, mild, sharp, nearly one-hot.
SHARPNESS = (0.0, 1.0, 4.0, 16.0)
# Columns of values, each a sample of the noise, in one call; and in all, where a call is slow.
COLUMNS, FEW_COLUMNS = 2**15, 2**12


class Setting(NamedTuple):
    """Attention weights of HEADS heads and ROWS rows, and what is known of them."""

    case: Case  # one element of the batch
    truth: Forward
    s2: np.ndarray  # (H, M)
    rng: np.random.Generator

    @property
    def halves(self) -> bool:
        """Whether outputs are rounded so coarsely that noise has to be large beside signals."""
        return rounding_of(self.case.dtype, self.case.arithmetic).out > 2.0**-24

    def clean_values(self) -> np.ndarray:
        """Values (H, N, d) that noise is added to; 0 where the output's rounding would drown the noise."""
        return grid_mean(self.rng, self.case.value.shape) * (0.0 if self.halves else 1.0)

    def signs(self, batch: int) -> np.ndarray:
        """Independent values of -1 and 1 for a batch of this setting: (batch, H, N, d)."""
        return signs(self.rng, (batch, *self.case.value.shape))

    def call(self, implementation: Implementation, values: np.ndarray) -> Called:
        """The output (batch, H, M, d) for values (batch, H, N, d)."""
        one = self.case
        values = values.astype(one.value.dtype)
        case = one.but(value=values, **self._queries_and_keys(values.shape[0]))
        got = implementation.run(case).output
        largest = float(np.max(np.abs(values)))
        first = one.but(value=values[:1], **self._queries_and_keys(1))
        return Called(got, average_bound(one, self.truth, largest, got), first)

    def _queries_and_keys(self, batch: int) -> dict[str, np.ndarray]:
        one = self.case
        return {name: np.broadcast_to(a := getattr(one, name), (batch, *a.shape)) for name in ("query", "key")}


class Called(NamedTuple):
    """A computed output, how far it may be from the truth, and the call of the first element of the batch alone."""

    output: np.ndarray
    bound: np.ndarray
    case: Case


class Energy:
    """Mean square of computed columns, and how far from it that of the true columns may be.

    True columns differ by at most ``bound``, so the root of the sum of squares differs by that of the bounds
    (Minkowski).
    """

    def __init__(self) -> None:
        self.columns = 0
        self._squares: Any = 0.0
        self._bounds: Any = 0.0

    def add(self, columns: np.ndarray, bound: np.ndarray) -> None:
        """Columns (batch, ..., d) of independent samples, and how far they may be from the true ones."""
        self.columns += columns.shape[0] * columns.shape[-1]
        self._squares = self._squares + np.sum(columns**2, axis=(0, -1))
        self._bounds = self._bounds + np.sum(np.broadcast_to(bound, columns.shape) ** 2, axis=(0, -1))

    @property
    def mean(self) -> np.ndarray:
        """Mean square of a column."""
        return self._squares / self.columns

    @property
    def slack(self) -> np.ndarray:
        """How far that of the true columns may be from it."""
        root = np.sqrt(self._bounds / self.columns)
        return 2 * root * np.sqrt(self.mean) + root**2


def setting(case: Case, d: int, bias: np.ndarray | None = None) -> Setting:
    """Weights from the seeds of a case, for values of width d; with a bias (H, M, N), of the bias alone."""
    rng = np.random.default_rng([case.seed, draw_seed(), d])
    dtype = numpy_dtype(case.dtype)
    query = rng.standard_normal((HEADS, ROWS, d))
    query = query * math.sqrt(d) / np.linalg.norm(query, axis=-1, keepdims=True)
    query = query * (0.0 if bias is not None else np.asarray(SHARPNESS)[:, None])
    key = rng.standard_normal((HEADS, KEYS, d))
    value = np.zeros((HEADS, KEYS, d))
    query, key, value = (array.astype(dtype) for array in (query, key, value))
    bias = None if bias is None else bias.astype(dtype)
    one = Case(query, key, value, bias, seed=case.seed, arithmetic=case.arithmetic)
    truth, _ = truth_of(one)
    return Setting(one, truth, np.sum(truth.weights**2, axis=-1), rng)


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent values of -1 and 1, equally likely."""
    count = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), np.uint8), count=count)
    return (2.0 * bits - 1.0).reshape(shape)


def grid_mean(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 1/64 in [-2, 2]: with 2 added or taken away, bfloat16 still holds them exactly."""
    return rng.integers(-128, 129, shape) / 64


def trials(implementation: Implementation, d: int, columns: int) -> Iterator[int]:
    """Sizes of batches, all equal, until so many columns of width d have been had; fewer where calls are slow."""
    columns = columns if implementation.most_cases is None else min(columns, FEW_COLUMNS)
    for _ in range(-(-columns // COLUMNS)):
        yield min(columns, COLUMNS) // d


def exceeds(up: Any, down: Any, largest: Any, tests: int) -> Any:
    """How far a sum may exceed its mean: one of ``tests``, which together give a false alarm at the rate ALARM.

    ``up`` and ``down`` are sums of (w S2)^2 over positive and negative w; ``largest`` is the largest w S2.
    """
    tau = math.log(tests / ALARM)
    return 2 * np.sqrt((up + 1.5 * down) * tau) + 2 * largest * tau


def mean_times_signs(size: np.ndarray, s2: np.ndarray, columns: int, tests: int) -> np.ndarray:
    """How far the mean of 2 mu_k X_k over columns may be from 0; ``size`` is the mean of mu_k^2.

    log E exp(t X) <= t^2 S2 / 2, so the sum exceeds sqrt(2 tau) times the root of sum_k 4 mu_k^2 S2 with a probability
    of at most exp(-tau).
    """
    return np.sqrt(2 * math.log(tests / ALARM) * 4 * size * s2 / columns)


def holds(what: str, got: np.ndarray, wanted: np.ndarray, limits: tuple[Any, Any], slack: Any, case: Case) -> None:
    """A measured quantity does not exceed its law, or stay below it, by more than the limits and the slack."""
    above, below = limits
    within(what, got, wanted, np.where(got > wanted, above, below) + slack, case)
