"""Small wrong functions in NumPy, each with the clause of families F, E, S, P, L or B that must convict it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ia_core import BoxMLP, Grid, OffsetTable, PositionBias, indirect_attention
from ia_core.conformance._implementation import BASIC

CLAIMS = BASIC - {"lse"} | {"position_bias", "wide_bias"}


class Mutant(NamedTuple):
    """A bug, the clause that must convict it, and in which dtype and profile."""

    fn: Callable[..., Any]
    label: str
    dtype: str = "float32"
    profile: str = "quick"


MUTANTS: list[Mutant] = []


def bug(label: str, dtype: str = "float32", profile: str = "quick") -> Callable[..., Any]:
    """A function (query, key, value, bias, mask, scale) with one bug."""

    def register(wrong: Callable[..., Any]) -> Callable[..., Any]:
        def fn(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None) -> Any:
            return wrong(query, key, value, bias, mask, scale)

        fn.__name__ = wrong.__name__
        MUTANTS.append(Mutant(fn, label, dtype, profile))
        return wrong

    return register


def correct(q: Any, k: Any, v: Any, bias: Any = None, mask: Any = None, scale: Any = None) -> Any:
    return indirect_attention(q, k, v, bias=bias, mask=mask, scale=scale)


def without_keys(lost: Any, q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    kept = np.broadcast_to(True if mask is None else mask, (*q.shape[:-1], k.shape[-2])) & ~lost
    return correct(q, k, v, bias, kept, scale)


# Masks and the scale


def is_lower_triangle(mask: Any, M: int, N: int) -> bool:
    shapes = [np.tril(np.ones((M, N), bool), k) for k in range(1 - M, N - 1)]
    return mask is not None and any(np.array_equal(mask, shape) for shape in shapes)


@bug("IA-F-13")
def causal_flag_for_any_triangle(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    M, N = q.shape[-2], k.shape[-2]
    if is_lower_triangle(mask, M, N):
        mask = np.tril(np.ones((M, N), bool))
    return correct(q, k, v, bias, mask, scale)


@bug("IA-F-13")
def causal_flag_from_the_last_row(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    M, N = q.shape[-2], k.shape[-2]
    if is_lower_triangle(mask, M, N):
        mask = np.tril(np.ones((M, N), bool), N - M)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-F-14")
def mask_of_three_axes_by_batch(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if mask is not None and mask.ndim == 3 and q.ndim == 4 and mask.shape[0] == q.shape[0]:
        mask = mask[:, None]
    return correct(q, k, v, bias, mask, scale)


@bug("IA-F-14")
def mask_of_the_first_element(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, v, bias, mask[:1] if mask is not None and mask.ndim == 4 else mask, scale)


@bug("IA-F-15")
def scale_of_zero_is_missing(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, v, bias, mask, scale or None)


@bug("IA-F-16")
def bias_replaces_the_mask(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, v, bias, mask if bias is None else None, scale)


@bug("IA-F-16")
def mask_replaces_the_bias(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, v, bias if mask is None else None, mask, scale)


# Sizes


@bug("IA-E-16")
def last_key_lost_at_1_of_32(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    N = k.shape[-2]
    lost = (np.arange(N) == N - 1) & (N > 1) & (N % 32 == 1)
    return without_keys(lost, q, k, v, bias, mask, scale)


@bug("IA-E-16", profile="full")
@bug("IA-E-16", "float64", "full")
@bug("IA-E-16", "bfloat16", "full")
def last_tile_lost_at_37_of_64(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    N = k.shape[-2]
    lost = (np.arange(N) >= N // 64 * 64) & (N > 64) & (N % 64 == 37)
    return without_keys(lost, q, k, v, bias, mask, scale)


@bug("IA-E-16", profile="full")
def last_key_lost_at_93_of_128_beside_a_bias(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    N = k.shape[-2]
    lost = (np.arange(N) == N - 1) & (bias is not None) & (N % 128 == 93)
    return without_keys(lost, q, k, v, bias, mask, scale)


@bug("IA-E-17")
def bias_of_the_first_row_of_a_tile(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, np.ndarray) and bias.ndim > 1 and bias.shape[-2] > 16:
        bias = bias[..., np.arange(bias.shape[-2]) // 16 * 16, :]
    return correct(q, k, v, bias, mask, scale)


@bug("IA-E-17", profile="full")
@bug("IA-E-17", "float16", "full")
def last_row_lost_at_77_of_128(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    output = correct(q, k, v, bias, mask, scale)
    if q.shape[-2] % 128 == 77:
        output[..., -1, :] = 0
    return output


@bug("IA-E-18")
@bug("IA-E-18", "bfloat16")
def sums_not_rescaled(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    scores = q.astype(np.float64) @ np.swapaxes(k, -1, -2).astype(np.float64) / math.sqrt(q.shape[-1])
    top = np.max(scores[..., :64], axis=-1, keepdims=True)
    e = np.exp(np.minimum(scores - top, 80))  # the maximum of the first tile, for all
    return (e / e.sum(axis=-1, keepdims=True) @ v.astype(np.float64)).astype(q.dtype)


@bug("IA-E-18", "float64")
def keys_beyond_1024_lost(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return without_keys(np.arange(k.shape[-2]) >= 1024, q, k, v, bias, mask, scale)


# Special values


@bug("IA-S-11")
def values_read_beyond_their_end(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    output = correct(q, k, v, bias, mask, scale)
    if v.base is None or v.base.size <= v.size:
        return output
    shape = (*v.shape[:-2], v.shape[-2] + 1, v.shape[-1])  # the row behind exists: v is a slice
    longer = np.lib.stride_tricks.as_strided(v, shape, v.strides)
    return output + 0 * longer[..., -1:, :].sum()


@bug("IA-S-11")
def mask_read_beyond_its_end(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if mask is not None and mask.base is not None and mask.base.shape[-1] > mask.shape[-1] > 1:
        start = 0 if mask.base.shape[-1] == mask.shape[-1] + 64 else 3
        mask = mask.base[..., start : start + mask.shape[-2], start + 1 : start + 1 + mask.shape[-1]]
    return correct(q, k, v, bias, mask, scale)


@bug("IA-S-12")
@bug("IA-S-12", "float64")
@bug("IA-S-12", "float16")
@bug("IA-S-12", "bfloat16")
def lowest_bias_taken_for_minus_inf(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, np.ndarray):
        lowest = ml_dtypes.finfo(bias.dtype).min
        bias = np.where(bias == lowest, -np.inf, bias).astype(bias.dtype)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-S-12")
def running_maximum_starts_at_minus_1e30(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, np.ndarray):
        bias = np.where(bias < -1e30, -np.inf, bias).astype(bias.dtype)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-S-13")
def heads_divided(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    assert q.shape[-3] // k.shape[-3]
    return correct(q, k, v, bias, mask, scale)


@bug("IA-S-14")
@bug("IA-S-14", "float16")
def infinity_clipped(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, np.clip(v, ml_dtypes.finfo(v.dtype).min, ml_dtypes.finfo(v.dtype).max), bias, mask, scale)


@bug("IA-S-15")
@bug("IA-S-15", "float64")
def query_brought_to_size_one(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    size = np.max(np.abs(q), axis=-1, keepdims=True)
    unit = q * (1 / np.where(size == 0, 1, size).astype(q.dtype))
    size, scale = size * k.dtype.type(1), 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = scale * (unit @ np.repeat(np.swapaxes(k, -1, -2), q.shape[-3] // k.shape[-3], axis=-3)) * size
    return correct(np.zeros_like(q), k, v, scores.astype(q.dtype))


@bug("IA-S-15", "float16")
def subnormal_halves_flushed(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    q, k, v = (np.where(np.abs(x) < 2.0**-14, 0, x).astype(x.dtype) for x in (q, k, v))
    return correct(q, k, v, bias, mask, scale)


# Halves


def through(array: Any, dtype: Any) -> Any:
    return array.astype(dtype).astype(array.dtype)


@bug("IA-P-06", "float16")
@bug("IA-P-06", "bfloat16")
def positions_in_halves(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, PositionBias) and not isinstance(bias.f, BoxMLP):
        rounded = (through(p, q.dtype) for p in (bias.query_positions, bias.value_positions))
        bias = PositionBias(bias.f, *rounded)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-P-06", "float16")
@bug("IA-P-06", "bfloat16")
def offsets_in_halves(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, PositionBias) and isinstance(bias.f, OffsetTable):
        offsets = bias.f.offsets(bias.query_positions, bias.value_positions)
        bias = bias.f(through(offsets, q.dtype))
    return correct(q, k, v, bias, mask, scale)


@bug("IA-P-07", "float16")
@bug("IA-P-07", "bfloat16")
def bias_rounded_to_the_query(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, v, bias.astype(q.dtype) if isinstance(bias, np.ndarray) else bias, mask, scale)


@bug("IA-P-08", "float16")
def products_in_float16(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    products = q.astype(np.float32) @ np.swapaxes(k, -1, -2).astype(np.float32)
    scores = products.astype(np.float16).astype(np.float32) / np.float32(math.sqrt(q.shape[-1]))
    return correct(np.zeros_like(q), k, v, scores, mask)


@bug("IA-P-08", "float16")
def products_clipped_to_float16(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    products = q.astype(np.float32) @ np.swapaxes(k, -1, -2).astype(np.float32)
    scores = np.clip(products, -65504, 65504) / np.float32(math.sqrt(q.shape[-1]))
    return correct(np.zeros_like(q), k, v, scores, mask)


# Memory


def flat(array: Any) -> Any:
    """As many numbers as an array has, from its first one on in the memory that it is a view of."""
    base = array
    while base.base is not None:
        base = base.base
    start = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // array.itemsize
    return np.resize(np.roll(base.ravel(order="K"), -start), array.shape)


@bug("IA-L-01")
@bug("IA-L-05")
def key_taken_for_contiguous(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k if k.flags.c_contiguous else flat(k), v, bias, mask, scale)


@bug("IA-L-05")
def heads_and_rows_in_the_order_of_memory(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if v.size and v.strides[-2] > v.strides[-3] > v.strides[-1]:
        v = np.swapaxes(v, -2, -3).reshape(v.shape)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-L-06")
def stride_of_0_taken_for_a_full_axis(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, flat(v) if v.size and 0 in v.strides else v, bias, mask, scale)


@bug("IA-L-07")
def negative_strides_made_positive(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return correct(q, k, v[..., ::-1, :] if v.strides[-2] < 0 else v, bias, mask, scale)


@bug("IA-L-07")
def offset_ignored(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if k.base is not None and min(k.strides) > 0:
        k = k.base[tuple(slice(0, n) for n in k.shape)]
    return correct(q, k, v, bias, mask, scale)


@bug("IA-L-08")
def bias_taken_for_contiguous(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    strided = isinstance(bias, np.ndarray) and not bias.flags.c_contiguous
    return correct(q, k, v, flat(bias) if strided else bias, mask, scale)


@bug("IA-L-08")
def mask_taken_for_contiguous(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    strided = mask is not None and not mask.flags.c_contiguous
    return correct(q, k, v, bias, flat(mask) if strided else mask, scale)


@bug("IA-L-09")
def bias_by_columns_where_square(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, np.ndarray) and bias.ndim > 1 and bias.shape[-1] == bias.shape[-2]:
        bias = np.swapaxes(bias, -1, -2)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-L-09")
def heads_behind_rows_where_equal(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    output = correct(q, k, v, bias, mask, scale)
    return np.swapaxes(output, -2, -3) if q.shape[-2] == q.shape[-3] == q.shape[-1] else output


# Positions


@bug("IA-B-08")
def values_stand_at_0_1_2(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, PositionBias) and not isinstance(bias.value_positions, Grid):
        p = bias.value_positions
        bias = bias._replace(value_positions=np.broadcast_to(np.arange(p.shape[-1]), p.shape).astype(p.dtype))
    return correct(q, k, v, bias, mask, scale)


@bug("IA-B-08", "float16")
@bug("IA-B-08", "bfloat16")
def moved_positions_in_halves(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    return positions_in_halves(q, k, v, bias, mask, scale)


@bug("IA-B-09")
def pixels_by_columns(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, PositionBias) and isinstance(bias.value_positions, Grid):
        R, W = bias.value_positions.y.shape[0], bias.value_positions.x.shape[0]
        dense = bias.dense()
        bias = np.swapaxes(dense.reshape(*dense.shape[:-1], R, W), -1, -2).reshape(dense.shape)
    return correct(q, k, v, bias, mask, scale)


@bug("IA-B-10")
def positions_sorted(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    if isinstance(bias, PositionBias) and not isinstance(bias.f, BoxMLP):
        bias = bias._replace(query_positions=np.sort(bias.query_positions, axis=-1))
    return correct(q, k, v, bias, mask, scale)


@bug("IA-B-10")
def repeated_values_lost(q: Any, k: Any, v: Any, bias: Any, mask: Any, scale: Any) -> Any:
    lost = np.zeros(k.shape[-2], bool)
    if isinstance(bias, PositionBias) and not isinstance(bias.value_positions, Grid):
        first = np.unique(bias.value_positions, return_index=True)[1]
        lost = ~np.isin(np.arange(k.shape[-2]), first)
    return without_keys(lost, q, k, v, bias, mask, scale)
