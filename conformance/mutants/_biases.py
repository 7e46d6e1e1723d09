"""A dense bias."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ._base import Attention, Call, Tiled
from ._mutant import before, step

__all__: list[str] = []


def _dense(call: Call) -> bool:
    return isinstance(call.bias, np.ndarray)


@before("bias", "IA-F-01", "IA-F-03")
def bias_ignored(call: Call) -> None:
    """The bias is not looked at."""
    call.bias = None


@step("bias", "add", "IA-F-03")
def bias_subtracted(self: Attention, call: Call, factor: Any, products: Any, bias: Any) -> Any:
    """The bias has the wrong sign."""
    return factor * products if bias is None else factor * products - bias


@step("bias", "add", "IA-F-03")
def bias_before_scale(self: Attention, call: Call, factor: Any, products: Any, bias: Any) -> Any:
    """Scale (q k^T + b)."""
    return factor * products if bias is None else factor * (products + bias)


@step("bias", "add", "IA-F-03")
def bias_twice(self: Attention, call: Call, factor: Any, products: Any, bias: Any) -> Any:
    """The bias is in the accumulator at first, and added once more at the end."""
    return factor * products if bias is None else factor * products + bias + bias


@before("bias", "IA-L-09")
def bias_transposed_where_square(call: Call) -> None:
    """With as many queries as keys, the bias is read by columns."""
    if _dense(call) and call.bias.ndim > 1 and call.bias.shape[-1] == call.bias.shape[-2] == call.M == call.N:
        call.bias = np.swapaxes(call.bias, -1, -2)


@before("bias", "IA-F-05")
def one_head_bias(call: Call) -> None:
    """The head axis of the bias has stride 0."""
    if _dense(call) and call.bias.ndim > 2:
        call.bias = call.bias[..., :1, :, :]


@before("bias", "IA-F-03")
def bias_of_first_element(call: Call) -> None:
    """The batch axis of the bias has stride 0."""
    if _dense(call) and call.bias.ndim > 3:
        call.bias = call.bias[:1]


@before("bias", "IA-F-03")
def bias_of_first_row(call: Call) -> None:
    """The bias of the first query serves all."""
    if _dense(call) and call.bias.ndim > 1:
        call.bias = call.bias[..., :1, :]


@before("bias", "IA-E-17")
def bias_of_first_row_of_a_tile(call: Call) -> None:
    """In every tile of 16 queries the bias is that of the tile's first row."""
    if _dense(call) and call.bias.ndim > 1 and call.bias.shape[-2] > 1:
        call.bias = call.bias[..., np.arange(call.M) // 16 * 16, :]


@before("bias", "IA-F-05")
def bias_of_three_axes_by_batch(call: Call) -> None:
    """A bias of three axes is read as (batch, M, N) where it fits."""
    if _dense(call) and call.bias.ndim == 3 and call.query.ndim == 4:
        B, H = call.query.shape[0], call.bias.shape[0]
        call.bias = call.bias[:, None] if H == B else call.bias[:1, None]


@before("bias", "IA-F-05")
def bias_of_the_key_head(call: Call) -> None:
    """Query heads that share a key head share its first bias too."""
    if _dense(call) and call.bias.ndim > 2 and call.bias.shape[-3] == call.H:
        group = call.H // call.Hk
        call.bias = call.bias[..., np.arange(call.H) // group * group, :, :]


@before("bias", "IA-F-04", only_full=True)
def bias_of_queries_read_as_of_keys(call: Call) -> None:
    """A bias of one column is stretched along the other axis where M = N, and repeated where not."""
    if _dense(call) and call.bias.ndim > 1 and call.bias.shape[-1] == 1 and call.bias.shape[-2] == call.M > 1:
        call.bias = np.resize(call.bias[..., 0], (*call.bias.shape[:-2], 1, call.N))


@before("bias", "IA-S-10")
def bias_from_below_at_minus_five(call: Call) -> None:
    """The bias is clipped from below: -inf becomes a finite number."""
    if _dense(call):
        call.bias = np.maximum(call.bias, np.asarray(-5.0, call.bias.dtype))


@before("bias", "IA-E-01")
def bias_of_zeros_taken_for_a_mask(call: Call) -> None:
    """An array of zeros is taken for a mask of numbers, which hides everything."""
    if _dense(call) and call.bias.shape == call.scores_shape and not np.any(call.bias):
        call.mask = np.zeros(call.scores_shape, bool)


@before("bias", "IA-E-03", "IA-E-11")
def bias_clipped_at_seven(call: Call) -> None:
    """The bias is stored in a type that ends at 7."""
    if _dense(call):
        call.bias = np.minimum(call.bias, np.asarray(7, call.bias.dtype))


@before("bias", "IA-E-11", "IA-S-09")
def bias_clipped_at_twelve(call: Call) -> None:
    """The bias is stored in a type that ends at 12."""
    if _dense(call):
        call.bias = np.minimum(call.bias, np.asarray(12, call.bias.dtype))


@step("bias", "weights", "IA-S-10")
def first_key_of_minus_inf_gives_nan(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """-inf - (-inf) in the running maximum, where the bias takes the first key away, and not all."""
    weights = Attention.weights(self, call, e, total)
    if not _dense(call) or not call.N:
        return weights
    first = np.isneginf(np.broadcast_to(call.bias, call.scores_shape)[..., :1])
    return np.where(first & (total > 0), weights.dtype.type(np.nan), weights)


@before("bias", "IA-S-09")
def bias_clipped_at_thousands(call: Call) -> None:
    """The bias is clipped to 1000 on both sides."""
    if _dense(call):
        call.bias = np.clip(call.bias, np.asarray(-1000, call.bias.dtype), np.asarray(1000, call.bias.dtype))


@step("bias", "top", "IA-S-02")
def bias_of_minus_inf_gives_nan(self: Attention, call: Call, s: Any) -> Any:
    """A row whose bias is -inf everywhere has nan: -inf - (-inf)."""
    top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
    return np.where(np.isneginf(top), s.dtype.type(0), top) if call.bias is None else top


@step("bias", "masked", "IA-S-12")
def finfo_min_taken_for_minus_inf(self: Attention, call: Call, s: Any) -> Any:
    """A score below half of the finfo.min of the inputs counts as masked."""
    s = Attention.masked(self, call, s)
    lowest = float(ml_dtypes.finfo(call.query.dtype).min)
    return np.where(s <= lowest / 2, s.dtype.type(-np.inf), s)


@step("bias", "dense", "IA-P-01", "IA-P-02")
def bias_rounded_to_float16(self: Attention, call: Call, bias: Any) -> Any:
    """The bias goes through float16."""
    return Attention.dense(self, call, bias).astype(np.float16)


@step("bias", "dense", "IA-P-07", dtypes=("float16", "bfloat16", "float32"))
def wide_bias_rounded(self: Attention, call: Call, bias: Any) -> Any:
    """A float32 bias is rounded to the dtype of the query."""
    return Attention.dense(self, call, bias).astype(call.query.dtype)


class _Small(Tiled):
    tile = 32


@step("bias", "dense", "IA-E-16", base=_Small)
def bias_not_advanced_with_the_tile(self: Tiled, call: Call, bias: Any) -> Any:
    """Every tile of 32 keys has the bias of the first one."""
    dense = Attention.dense(self, call, bias)
    return dense[..., np.arange(call.N) % 32] if dense.shape[-1] == call.N else dense


@step("bias", "weights", "IA-S-09")
def bias_as_a_factor(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """exp(b) multiplies the exponentials, and overflows."""
    if not _dense(call):
        return Attention.weights(self, call, e, total)
    factor = np.exp(call.bias.astype(e.dtype) - 0)
    e = np.where(e > 0, e / np.where(factor == 0, 1, factor), 0) * factor
    total = np.sum(e, axis=-1, keepdims=True)
    return e / np.where(total == 0, total.dtype.type(1), total)
