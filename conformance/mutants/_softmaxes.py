"""Denominators and running maxima, special values, the lse and states that are merged."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ._base import Attention, Call, Tiled
from ._mutant import FORWARD, after, before, instead, step

__all__: list[str] = []


@step("softmax", "attend", "IA-F-12", "IA-E-13")
def softmax_over_queries(self: Attention, call: Call, s: Any, v: Any) -> Any:
    """The weights are normalised over the queries."""
    top = np.max(s, axis=-2, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isneginf(top), 0, top).astype(s.dtype))
    total = e.sum(axis=-2, keepdims=True)
    lse = (top + np.log(total)) + np.zeros_like(s)
    return np.matmul(e / np.where(total == 0, 1, total).astype(s.dtype), v), lse[..., 0] if call.N else s.sum(axis=-1)


@step("softmax", "top", "IA-S-09")
def maximum_not_below_zero(self: Attention, call: Call, s: Any) -> Any:
    """max(0, max): scores of -10000 vanish."""
    return np.maximum(Attention.top(self, call, s), s.dtype.type(0))


@step("softmax", "top", "IA-S-09", "IA-E-11")
def maximum_not_subtracted(self: Attention, call: Call, s: Any) -> Any:
    """exp(s) overflows."""
    return np.zeros((*s.shape[:-1], 1), s.dtype)


@step("softmax", "top", "IA-S-09")
def one_maximum_for_all_rows(self: Attention, call: Call, s: Any) -> Any:
    """The maximum is taken over the whole head: rows far below it vanish."""
    return np.max(Attention.top(self, call, s), axis=-2, keepdims=True, initial=-np.inf) + np.zeros(
        (*s.shape[:-1], 1), s.dtype
    )


@step("softmax", "top", "IA-S-09")
def maximum_without_the_bias(self: Attention, call: Call, s: Any) -> Any:
    """The maximum of the products is subtracted, not that of the products with the bias."""
    if call.bias is None:
        return Attention.top(self, call, s)
    q, k = (a.astype(s.dtype) for a in (call.query, self.keys(call, call.key)))
    return Attention.top(self, call, s.dtype.type(self.factor(call)) * self.products(call, q, k))


@step("softmax", "total", "IA-P-01", "IA-P-02")
def denominator_plus_1e_6(self: Attention, call: Call, e: Any) -> Any:
    """An epsilon of 1e-6 guards the division."""
    return np.sum(e, axis=-1, keepdims=True) + e.dtype.type(1e-6)


@step("softmax", "total", "IA-F-12")
def denominator_plus_one(self: Attention, call: Call, e: Any) -> Any:
    """exp(s) / (1 + sum exp(s)): a key that is not there."""
    return np.sum(e, axis=-1, keepdims=True) + e.dtype.type(1)


@step("softmax", "total", "IA-F-12")
def denominator_counts_the_keys(self: Attention, call: Call, e: Any) -> Any:
    """The exponentials are divided by N."""
    return np.full((*e.shape[:-1], 1), e.shape[-1], e.dtype)


@step("softmax", "total", "IA-F-12")
def denominator_without_the_last_key(self: Attention, call: Call, e: Any) -> Any:
    """The sum runs to N - 1."""
    return np.sum(e[..., :-1], axis=-1, keepdims=True) if e.shape[-1] > 1 else np.sum(e, axis=-1, keepdims=True)


@step("softmax", "rescale", "IA-E-18", base=Tiled)
def rescale_missing(self: Tiled, call: Call, top: Any, new: Any) -> Any:
    """Sums under an old maximum are not rescaled."""
    return np.ones_like(new)


@step("softmax", "add_output", "IA-E-18", base=Tiled)
def output_not_rescaled(self: Tiled, call: Call, output: Any, keep: Any, e: Any, v: Any) -> Any:
    """The denominator is rescaled under a new maximum, the output is not."""
    return output + np.matmul(e, v)


@step("softmax", "add_total", "IA-E-18", base=Tiled)
def denominator_not_rescaled(self: Tiled, call: Call, total: Any, keep: Any, e: Any) -> Any:
    """The output is rescaled under a new maximum, the denominator is not."""
    return total + np.sum(e, axis=-1, keepdims=True)


@step("softmax", "rescale", "IA-E-18", base=Tiled)
def rescale_upside_down(self: Tiled, call: Call, top: Any, new: Any) -> Any:
    """exp(new - old), where there is an old maximum."""
    return np.where(np.isneginf(top), top.dtype.type(0), np.exp(new - self.safe(top)))


@step("softmax", "larger", "IA-E-18", base=Tiled)
def maximum_of_the_first_tile(self: Tiled, call: Call, top: Any, s: Any) -> Any:
    """The maximum of the first tile is kept: later scores overflow."""
    return np.where(np.isneginf(top), np.max(s, axis=-1, keepdims=True), top)


@step("softmax", "rescale", "IA-E-18", base=Tiled)
def rescale_only_beyond_eight(self: Tiled, call: Call, top: Any, new: Any) -> Any:
    """A rescaling by less than 2^8 is left for later, which never comes."""
    keep = np.exp(top - self.safe(new))
    return np.where((keep > 2.0**-8) & (keep < 1), top.dtype.type(1), keep)


@step("softmax", "exps", "IA-P-01", "IA-P-02")
def exponential_good_to_1e_4(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """exp(x) is 2^k p(f), with a polynomial p of degree 3."""
    x = np.maximum((s - top) * s.dtype.type(math.log2(math.e)), s.dtype.type(-1000))
    whole = np.floor(x)
    f = x - whole
    poly = 1 + f * (s.dtype.type(0.69583) + f * (s.dtype.type(0.22606) + f * s.dtype.type(0.07811)))
    return np.where(np.isneginf(s), s.dtype.type(0), np.ldexp(poly.astype(s.dtype), whole.astype(np.int32)))


@step("softmax", "exps", "IA-P-01", "IA-P-02")
def log2_e_of_five_digits(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """exp(x) is 2^(1.4427 x)."""
    return np.exp2((s - top) * s.dtype.type(1.4427))


@step("softmax", "exps", "IA-F-12", "IA-F-01", only_full=True)
def exponential_cut_at_minus_five(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """exp(x) is 0 below -5."""
    e = np.exp(s - top)
    return np.where(s - top < -5, s.dtype.type(0), e)


@after("softmax", "IA-S-07")
def nan_swallowed(call: Call, output: Any, lse: Any) -> Any:
    """nan_to_num on the output."""
    return np.where(np.isnan(output), output.dtype.type(0), output)


@before("softmax", "IA-S-07")
def nan_in_the_query_swallowed(call: Call) -> None:
    """nan_to_num on the query."""
    call.query = np.where(np.isnan(call.query), call.query.dtype.type(0), call.query)


@step("softmax", "masked", "IA-S-07")
def nan_scores_taken_for_minus_inf(self: Attention, call: Call, s: Any) -> Any:
    """A score that is nan counts as masked."""
    s = Attention.masked(self, call, s)
    return np.where(np.isnan(s), s.dtype.type(-np.inf), s)


@before("softmax", "IA-S-14")
def inf_in_a_value_clipped(call: Call) -> None:
    """An infinite value becomes the largest finite one."""
    call.value = np.where(np.isinf(call.value), np.sign(call.value) * call.value.dtype.type(6e4), call.value)


@before("softmax", "IA-S-15", dtypes=("float16",))
def subnormal_halves_flushed(call: Call) -> None:
    """Subnormal values of float16 are read as 0, though they are ordinary numbers in float32."""
    call.value = np.where(np.abs(call.value) < 2.0**-14, call.value.dtype.type(0), call.value)


@instead("softmax", "IA-S-04")
def no_keys_raise(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """The maximum over no keys raises."""
    if key.shape[-2] == 0:
        raise ValueError("zero-size array to reduction operation maximum which has no identity")
    return Attention()(query, key, value, **rest)


@after("softmax", "IA-S-04")
def no_keys_give_nan(call: Call, output: Any, lse: Any) -> Any:
    """Without keys the output is 0 / 0."""
    return output if call.N else output * output.dtype.type(np.nan)


@before("softmax", "IA-S-05")
def no_queries_give_a_row(call: Call) -> None:
    """A grid of kernels is never empty: no queries give one row."""
    if call.M == 0:
        call.query = np.zeros((*call.query.shape[:-2], 1, call.D), call.query.dtype)


@before("softmax", "IA-S-13")
def no_heads_raise(call: Call) -> None:
    """H / Hk divides by zero where there are no heads."""
    if call.H % call.Hk:
        raise ValueError("heads")


@after("softmax", "IA-S-08")
def one_key_gives_the_mean_over_heads(call: Call, output: Any, lse: Any) -> Any:
    """The shortcut for one key is taken along the wrong axis."""
    return np.broadcast_to(output.mean(axis=-3, keepdims=True), output.shape) if call.N == 1 else output


@step("softmax", "weights", "IA-F-12", "IA-F-01")
def smallest_weight_dropped(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """The key with the smallest weight is left out, and the rest not divided again."""
    weights = Attention.weights(self, call, e, total)
    return np.where(weights == np.min(weights, axis=-1, keepdims=True, initial=np.inf), weights.dtype.type(0), weights)


# Merging


@after("merging", "IA-F-08", "IA-E-07")
def log2_lse(call: Call, output: Any, lse: Any) -> Any:
    """The lse is in base 2."""
    return output, lse / lse.dtype.type(math.log(2))


@step("merging", "log", "IA-F-08", "IA-E-07")
def lse_without_the_maximum(self: Attention, call: Call, top: Any, total: Any) -> Any:
    """The maximum is not added again."""
    return np.log(total)[..., 0]


@step("merging", "log", "IA-F-08")
def lse_is_the_maximum(self: Attention, call: Call, top: Any, total: Any) -> Any:
    """The maximum stands for the lse."""
    return np.where(total == 0, total.dtype.type(-np.inf), top)[..., 0]


@step("merging", "log", "IA-F-08", "IA-E-07")
def lse_of_the_mean(self: Attention, call: Call, top: Any, total: Any) -> Any:
    """The logarithm of the mean of the exponentials."""
    return (top + np.log(total / max(call.N, 1)))[..., 0]


@after("merging", "IA-F-08")
def lse_before_the_bias(call: Call, output: Any, lse: Any) -> Any:
    """The lse of the products, without bias."""
    bare = Attention().run(dataclasses.replace(call, bias=None), True)[1]
    return output, np.where(np.isneginf(lse), lse, bare)


@after("merging", "IA-S-03")
def lse_of_empty_rows_is_0(call: Call, output: Any, lse: Any) -> Any:
    """A row with nothing to attend to has the lse 0."""
    return output, np.where(np.isneginf(lse), lse.dtype.type(0), lse)


@after("merging", "IA-S-03")
def lse_of_empty_rows_is_finite(call: Call, output: Any, lse: Any) -> Any:
    """A row with nothing to attend to has the lowest finite lse."""
    return output, np.where(np.isneginf(lse), np.finfo(lse.dtype).min, lse)


@after("merging", "IA-F-08")
def lse_in_float16(call: Call, output: Any, lse: Any) -> Any:
    """The lse goes through float16."""
    return output, lse.astype(np.float16).astype(lse.dtype)


def _halves(call: Call) -> tuple[Any, Any]:
    """Output and lse over both halves of the keys."""
    cut = (call.N + 1) // 2
    shape = call.scores_shape
    found = []
    for part in (slice(0, cut), slice(cut, None)):
        bias = None if call.bias is None else np.broadcast_to(Attention().dense(call, call.bias), shape)[..., part]
        mask = None if call.mask is None else np.broadcast_to(call.mask, shape)[..., part]
        half = Call(call.query, call.key[..., part, :], call.value[..., part, :], bias, mask, call.scale)
        found.append(Attention().run(half, True))
    return found[0], found[1]


@instead("merging", "IA-F-01", supports=FORWARD - {"lse"})
def parts_averaged(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """Two parts of the keys are merged by their mean."""
    (one, _), (two, _) = _halves(Call(query, key, value, **rest))
    return ((one + two) / 2).astype(query.dtype)


@instead("merging", "IA-S-01", supports=FORWARD - {"lse"})
def two_empty_parts_give_nan(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """-inf - (-inf) where both parts of the keys are empty."""
    (one, lse_one), (two, lse_two) = _halves(Call(query, key, value, **rest))
    top = np.maximum(lse_one, lse_two)
    a, b = (np.exp(lse - top)[..., None] for lse in (lse_one, lse_two))
    return ((a * one + b * two) / (a + b)).astype(query.dtype)


@instead("merging", "IA-S-09", supports=FORWARD - {"lse"})
def parts_merged_without_a_maximum(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """The parts are weighted by exp(lse), which overflows."""
    (one, lse_one), (two, lse_two) = _halves(Call(query, key, value, **rest))
    a, b = (np.exp(lse)[..., None] for lse in (lse_one, lse_two))
    total = a + b
    return ((a * one + b * two) / np.where(total == 0, 1, total)).astype(query.dtype)


@instead("merging", "IA-F-01", supports=FORWARD - {"lse"})
def parts_merged_upside_down(query: Any, key: Any, value: Any, **rest: Any) -> Any:
    """Each part has the weight of the other."""
    (one, lse_one), (two, lse_two) = _halves(Call(query, key, value, **rest))
    a = np.where(np.isneginf(lse_one), 0, 1 / (1 + np.exp(lse_one - lse_two)))[..., None]
    return (a * one + (1 - a) * two).astype(query.dtype)
