"""Randomness that nobody asked for, and values and weights that are made coarser."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ._base import Attention, Call
from ._mutant import FORWARD, after, step

__all__: list[str] = []

# What is random is random in halves too; how coarse something is shows where the output is not rounded to a half.
FLOATS: tuple[str, ...] = ("float32", "float64")
_RNG = np.random.default_rng(0)


def _dropped(weights: Any, rate: float, shape: tuple[int, ...] | None = None) -> Any:
    kept = _RNG.random(weights.shape if shape is None else shape) >= rate
    return np.where(kept, weights, weights.dtype.type(0))


@step("noise", "weights", "IA-N-01", "IA-N-03")
def weight_dropout_left_on(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """A tenth of the weights is dropped, and the others are scaled up, as in training."""
    weights = Attention.weights(self, call, e, total)
    return _dropped(weights, 0.1) / weights.dtype.type(0.9)


@step("noise", "weights", "IA-N-01")
def weight_dropout_not_scaled(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """A twentieth of the weights is dropped, and the others stay as they are."""
    return _dropped(Attention.weights(self, call, e, total), 0.05)


@step("noise", "weights", "IA-N-01")
def rare_dropout(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """One weight in a hundred is dropped."""
    return _dropped(Attention.weights(self, call, e, total), 0.01)


@step("noise", "weights", "IA-N-01", "IA-N-07")
def dropout_of_whole_keys(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """A fifth of the keys is dropped, the same ones for all heads and rows, and the others are scaled up."""
    weights = Attention.weights(self, call, e, total)
    shape = (*weights.shape[:-3], 1, 1, weights.shape[-1])
    return _dropped(weights, 0.2, shape) / weights.dtype.type(0.8)


@step("noise", "masked", "IA-N-01")
def jittered_scores(self: Attention, call: Call, s: Any) -> Any:
    """Scores have noise of 0.01, as routers have in training."""
    return Attention.masked(self, call, s + (0.01 * _RNG.standard_normal(s.shape)).astype(s.dtype))


@after("noise", "IA-N-01")
def noise_on_the_output(call: Call, output: Any, lse: Any) -> Any:
    """The output has noise of 1e-3, as for privacy."""
    noisy = output.astype(np.float64) + 1e-3 * _RNG.standard_normal(output.shape)
    return noisy.astype(output.dtype)


@step("noise", "weights", "IA-N-01", dtypes=FLOATS)
def weights_rounded_at_random(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """Weights are rounded up or down to 8 bits, with probabilities that keep their mean."""
    weights = Attention.weights(self, call, e, total)
    return np.floor(weights * 256 + _RNG.random(weights.shape)).astype(weights.dtype) / weights.dtype.type(256)


def _through(array: Any, kind: Any) -> Any:
    return array.astype(np.float32).astype(kind).astype(array.dtype)


@step("noise", "values", "IA-N-01", dtypes=FLOATS)
def values_in_fp8_e4m3(self: Attention, call: Call, v: Any) -> Any:
    """Values are kept with 3 bits behind the point."""
    return _through(Attention.values(self, call, v), ml_dtypes.float8_e4m3fn)


@step("noise", "values", "IA-N-01", dtypes=FLOATS)
def values_in_fp8_e5m2(self: Attention, call: Call, v: Any) -> Any:
    """Values are kept with 2 bits behind the point."""
    return _through(Attention.values(self, call, v), ml_dtypes.float8_e5m2)


@step("noise", "values", "IA-N-01", dtypes=FLOATS)
def values_in_bfloat16(self: Attention, call: Call, v: Any) -> Any:
    """Values are kept with 8 bits, in a cache of halves."""
    return _through(Attention.values(self, call, v), ml_dtypes.bfloat16)


@step("noise", "values", "IA-N-01", dtypes=FLOATS)
def values_in_int8(self: Attention, call: Call, v: Any) -> Any:
    """Values are kept as 8-bit integers, with a scale for each head."""
    largest = np.max(np.abs(v), axis=(-2, -1), keepdims=True, initial=np.finfo(v.dtype).tiny)
    step = largest / v.dtype.type(127)
    return Attention.values(self, call, np.round(v / step) * step)


@step("noise", "values", "IA-N-02", dtypes=FLOATS)
def small_values_dropped(self: Attention, call: Call, v: Any) -> Any:
    """Values below 1/32 count as 0."""
    return Attention.values(self, call, np.where(np.abs(v) < 1 / 32, v.dtype.type(0), v))


@step("noise", "weights", "IA-N-03", "IA-N-08", supports=FORWARD)
def weights_clipped_above(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """No weight is larger than 0.9."""
    return np.minimum(Attention.weights(self, call, e, total), e.dtype.type(0.9))


@step("noise", "weights", "IA-N-02")
def weights_clipped_below(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """Weights below 0.05 count as 0, and the others do not make up for them."""
    weights = Attention.weights(self, call, e, total)
    return np.where(weights < 0.05, weights.dtype.type(0), weights)


@step("noise", "exps", "IA-N-03", "IA-N-06")
def top_half_renormalised(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """Only the larger half of the weights counts, and sums to 1."""
    e = Attention.exps(self, call, s, top)
    k = max(1, -(-call.N // 2))
    least = np.sort(e, axis=-1)[..., -k:][..., :1] if call.N else e
    return np.where(e < least, e.dtype.type(0), e) if call.N else e


@step("noise", "exps", "IA-N-03")
def last_tenth_of_the_mass_dropped(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """Of the sorted weights those beyond 90 % of the mass are dropped, and the others sum to 1."""
    e = Attention.exps(self, call, s, top)
    order = np.argsort(-e, axis=-1, kind="stable")
    falling = np.take_along_axis(e, order, axis=-1)
    before = np.cumsum(falling, axis=-1) - falling
    kept = before < 0.9 * np.sum(e, axis=-1, keepdims=True)
    unsorted = np.take_along_axis(kept, np.argsort(order, axis=-1, kind="stable"), axis=-1)
    return np.where(unsorted, e, e.dtype.type(0))


@step("noise", "values", "IA-N-04", "IA-N-05")
def values_scaled_to_one(self: Attention, call: Call, v: Any) -> Any:
    """The values of a head are divided by their root mean square."""
    v = Attention.values(self, call, v)
    return v / np.sqrt(np.mean(v * v, axis=(-2, -1), keepdims=True, dtype=v.dtype) + v.dtype.type(1e-12))


@step("noise", "combine", "IA-N-03")
def mean_over_the_width_removed(self: Attention, call: Call, weights: Any, v: Any) -> Any:
    """The output of every head loses its mean over the width, as in a normalisation."""
    output = Attention.combine(self, call, weights, v)
    return output - np.mean(output, axis=-1, keepdims=True, dtype=output.dtype)


@step("noise", "values", "IA-N-06")
def values_centred(self: Attention, call: Call, v: Any) -> Any:
    """Values lose their mean over the keys."""
    v = Attention.values(self, call, v)
    return v - np.mean(v, axis=-2, keepdims=True, dtype=v.dtype) if call.N else v
