"""Where keys, values and heads come from, the scale, and how inputs lie in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._base import Attention, Call
from ._mutant import after, before, step

__all__ = ["contiguous"]


# Sources


@before("sources", "IA-L-09")
def values_from_the_keys(call: Call) -> None:
    """Where the widths allow it, the values are read from the source of the keys."""
    call.value = call.key if call.D == call.Dv else call.value


@before("sources", "IA-L-09")
def keys_from_the_values(call: Call) -> None:
    """Where the widths allow it, the keys are read from the source of the values."""
    call.key = call.value if call.D == call.Dv else call.key


@before("sources", "IA-L-09")
def self_attention_where_square(call: Call) -> None:
    """With as many queries as keys and heads, it is taken for self-attention: the keys are the queries."""
    call.key = call.query if call.query.shape == call.key.shape else call.key


@before("sources", "IA-F-01")
def values_shifted_by_one(call: Call) -> None:
    """Key j goes with value j - 1."""
    call.value = np.roll(call.value, 1, axis=-2)


@before("sources", "IA-F-01")
def values_reversed(call: Call) -> None:
    """Key j goes with value N - 1 - j."""
    call.value = call.value[..., ::-1, :]


@before("sources", "IA-E-06")
def equal_keys_counted_once(call: Call) -> None:
    """Keys are looked up by their content: of equal ones only the first has a value."""
    same = np.all(call.key[..., :, None, :] == call.key[..., None, :, :], axis=-1)  # (..., Hk, N, N)
    again = np.any(np.tril(same, -1), axis=-1) & np.any(call.key != 0, axis=-1)
    hidden = np.repeat(again, call.H // call.Hk if call.Hk else 1, axis=-2)[..., None, :]
    if np.any(hidden):
        call.mask = ~hidden if call.mask is None else call.mask & ~hidden


@before("sources", "IA-E-12")
def values_clipped_at_four(call: Call) -> None:
    """Values are held between -4 and 4."""
    four = call.value.dtype.type(4)
    call.value = np.where(np.abs(call.value) > four, np.sign(call.value) * four, call.value)


@before("sources", "IA-E-15")
def single_query_without_the_bias(call: Call) -> None:
    """The path for one query, as in decoding, has no bias."""
    call.bias = None if call.M == 1 else call.bias


@before("sources", "IA-F-11", "IA-E-10")
def one_batch_for_all(call: Call) -> None:
    """All elements of the batch read the keys and values of the first one."""
    if call.query.ndim > 3 and call.query.size and call.key.size:
        call.key, call.value = (np.broadcast_to(a[..., :1, :, :, :], a.shape) for a in (call.key, call.value))


@before("sources", "IA-F-01", only_full=True)
def two_batch_axes_swapped(call: Call) -> None:
    """Two leading axes of equal size are flattened in the other order for the values."""
    if call.value.ndim == 5 and call.value.shape[0] == call.value.shape[1]:
        call.value = np.swapaxes(call.value, 0, 1)


@before("sources", "IA-E-09", "IA-F-01")
def value_heads_rotated(call: Call) -> None:
    """Head h reads the values of head h + 1."""
    call.value = np.roll(call.value, 1, axis=-3)


@after("sources", "IA-L-09")
def heads_and_queries_swapped_where_equal(call: Call, output: Any, lse: Any) -> Any:
    """The output is in the layout (queries, heads), which shows only in the numbers where the two are as many."""
    return np.swapaxes(output, -2, -3) if call.H == call.M else output


@after("sources", "IA-L-09")
def layout_guessed_where_all_sizes_agree(call: Call, output: Any, lse: Any) -> Any:
    """With as many heads as queries and keys, all as wide, the layout is taken to be (queries, heads)."""
    return np.swapaxes(output, -2, -3) if call.H == call.M == call.N == call.D == call.Dv > 1 else output


@after("sources", "IA-F-10", dtypes=("float32", "float16", "bfloat16"))
def float64_output(call: Call, output: Any, lse: Any) -> Any:
    """The output is float64 whatever came in."""
    return output.astype(np.float64)


@after("sources", "IA-F-09")
def width_of_keys(call: Call, output: Any, lse: Any) -> Any:
    """The output is as wide as the keys."""
    return output[..., : call.D]


@before("sources", "IA-F-09")
def values_cut_to_the_width_of_keys(call: Call) -> None:
    """Columns of the values beyond D are not read: the output has zeros there."""
    call.value = np.where(np.arange(call.Dv) < call.D, call.value, call.value.dtype.type(0))


@after("sources", "IA-F-10", dtypes=("float64", "float32", "float16", "bfloat16"))
def float32_output(call: Call, output: Any, lse: Any) -> Any:
    """The output is float32 whatever came in."""
    return output.astype(np.float32)


@after("sources", "IA-F-10")
def output_without_batch_of_one(call: Call, output: Any, lse: Any) -> Any:
    """Axes of size 1 are squeezed out of the output."""
    return np.squeeze(output)


# Scale


@before("scale", "IA-F-02")
def scale_missing(call: Call) -> None:
    """There is no default scale."""
    call.scale = 1.0 if call.scale is None else call.scale


@step("scale", "factor", "IA-F-02", "IA-F-03")
def scale_twice(self: Attention, call: Call) -> float:
    """The query is scaled, and the products once more."""
    return Attention.factor(self, call) ** 2


@step("scale", "factor", "IA-F-02")
def scale_of_the_value_width(self: Attention, call: Call) -> float:
    """1 / sqrt(Dv)."""
    return 1 / math.sqrt(call.Dv) if call.scale is None else call.scale


@step("scale", "factor", "IA-F-02")
def scale_rooted_twice(self: Attention, call: Call) -> float:
    """D^(-1/4): the root that belongs to each side, on one side alone."""
    return float(call.D**-0.25) if call.scale is None else call.scale


@step("scale", "factor", "IA-F-02")
def scale_not_rooted(self: Attention, call: Call) -> float:
    """1 / D."""
    return 1 / call.D if call.scale is None else call.scale


@step("scale", "factor", "IA-F-02")
def scale_of_the_padded_width(self: Attention, call: Call) -> float:
    """1 / sqrt(D) after D was padded to a multiple of 8."""
    return 1 / math.sqrt(-(-call.D // 8) * 8) if call.scale is None else call.scale


@before("scale", "IA-F-03")
def scale_given_ignored(call: Call) -> None:
    """The default scale, whatever is given."""
    call.scale = None


@step("scale", "factor", "IA-F-03")
def scale_given_times_the_default(self: Attention, call: Call) -> float:
    """A given scale is applied on top of the default one."""
    return (1.0 if call.scale is None else call.scale) / math.sqrt(call.D)


@before("scale", "IA-F-15")
def scale_of_zero_taken_for_none(call: Call) -> None:
    """`scale or default`."""
    call.scale = call.scale or None


@step("scale", "factor", "IA-P-01", "IA-P-02")
def scale_in_float16(self: Attention, call: Call) -> float:
    """The scale goes through float16."""
    return float(np.float16(Attention.factor(self, call)))


@step("scale", "factor", "IA-P-01", dtypes=("float64", "float32"))
def scale_in_float32(self: Attention, call: Call) -> float:
    """The scale goes through float32, in float64 too."""
    return float(np.float32(Attention.factor(self, call)))


# Heads that share keys


def _tile(call: Call, array: Any) -> Any:
    return np.concatenate([array] * (call.H // call.Hk if call.Hk else 1), axis=-3)


@step("grouped", "spread", "IA-F-07")
def heads_tiled(self: Attention, call: Call, array: Any) -> Any:
    """Query head h reads key head h mod Hk."""
    return _tile(call, array)


@step("grouped", "values", "IA-F-07")
def value_heads_tiled(self: Attention, call: Call, v: Any) -> Any:
    """Keys are interleaved, values tiled."""
    return _tile(call, v)


@step("grouped", "spread", "IA-F-07")
def first_key_head_for_all(self: Attention, call: Call, array: Any) -> Any:
    """Grouped heads are taken for one shared head."""
    return np.repeat(array[..., :1, :, :], call.H, axis=-3) if call.H != call.Hk else array


@step("grouped", "spread", "IA-F-07")
def groups_of_a_power_of_two(self: Attention, call: Call, array: Any) -> Any:
    """The head is found by a shift: three heads a group are counted as two."""
    shift = (call.H // call.Hk).bit_length() - 1 if call.Hk else 0
    return array[..., np.minimum(np.arange(call.H) >> shift, call.Hk - 1), :, :]


@step("grouped", "spread", "IA-F-07")
def wrong_head_for_the_last_of_a_group(self: Attention, call: Call, array: Any) -> Any:
    """(h + 1) // group: the last head of each group reads the next one's keys."""
    if call.H == call.Hk:
        return array
    return array[..., np.minimum((np.arange(call.H) + 1) // (call.H // call.Hk), call.Hk - 1), :, :]


@before("grouped", "IA-F-14")
def mask_of_the_key_head(call: Call) -> None:
    """Query heads that share a key head share its first mask too."""
    if call.mask is not None and call.mask.ndim > 2 and call.mask.shape[-3] == call.H:
        group = call.H // call.Hk
        call.mask = call.mask[..., np.arange(call.H) // group * group, :, :]


# Memory


def _owner(array: Any) -> tuple[Any, int] | None:
    """The memory that an array is a view of, flat, and where in it the array starts."""
    base = array.base
    while isinstance(base, np.ndarray) and isinstance(base.base, np.ndarray):
        base = base.base
    if not isinstance(base, np.ndarray) or base.dtype != array.dtype or not (base.flags.forc and base.size):
        return None
    start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return base.ravel(order="K"), start // array.itemsize


def contiguous(array: Any) -> Any:
    """As many elements as an array has, one after another in memory, from its first one."""
    found = None if array is None or not isinstance(array, np.ndarray) or not array.size else _owner(array)
    if found is None:
        return array
    memory, start = found
    return np.resize(np.roll(memory, -start), array.shape)


@before("strides", "IA-L-01")
def strides_ignored(call: Call) -> None:
    """The elements of a value are read one after another."""
    if call.value.size and call.value.strides[-1] > call.value.itemsize:
        strides = (*call.value.strides[:-1], call.value.itemsize)
        call.value = np.lib.stride_tricks.as_strided(call.value, strides=strides)


@before("strides", "IA-L-05", "IA-L-01")
def memory_taken_for_contiguous(call: Call) -> None:
    """All of key is read from its first element on, whatever its strides."""
    call.key = call.key if call.key.flags.c_contiguous else contiguous(call.key)


@before("strides", "IA-L-05")
def axes_in_the_order_of_memory(call: Call) -> None:
    """A permuted query is read in the order of its memory."""
    query = call.query
    if query.ndim > 2 and query.size and 0 not in query.strides and not query.flags.c_contiguous:
        order = sorted(range(query.ndim), key=lambda axis: -query.strides[axis])
        call.query = np.transpose(query, order).reshape(query.shape)


@before("strides", "IA-L-06")
def expanded_axis_not_expanded(call: Call) -> None:
    """A value with a stride of 0 is read as if it lay in memory in full."""
    call.value = contiguous(call.value) if call.value.size and 0 in call.value.strides else call.value


@before("strides", "IA-L-07")
def offset_ignored(call: Call) -> None:
    """A slice is read from the start of the memory that it belongs to."""
    call.key = call.key if call.key.flags.c_contiguous and call.key.base is None else _from_the_start(call.key)


@before("strides", "IA-L-07")
def negative_strides_made_positive(call: Call) -> None:
    """A reversed value is read forwards."""
    for axis in range(call.value.ndim):
        if call.value.strides[axis] < 0:
            call.value = np.flip(call.value, axis)


@before("strides", "IA-L-08")
def bias_taken_for_contiguous(call: Call) -> None:
    """All of a bias is read from its first element on, whatever its strides."""
    if isinstance(call.bias, np.ndarray) and not call.bias.flags.c_contiguous:
        call.bias = contiguous(call.bias)


@before("strides", "IA-L-08")
def mask_taken_for_contiguous(call: Call) -> None:
    """All of a mask is read from its first element on, whatever its strides."""
    if isinstance(call.mask, np.ndarray) and not call.mask.flags.c_contiguous:
        call.mask = contiguous(call.mask)


@before("strides", "IA-S-11")
def keys_read_beyond_their_end(call: Call) -> None:
    """Keys and values are loaded up to a multiple of 8, with weights of 0 beyond the end."""
    call.value = call.value + 0 * _behind(call.value)


@before("strides", "IA-S-11")
def queries_read_beyond_their_end(call: Call) -> None:
    """Queries are loaded up to a multiple of 8, and one maximum is taken over the block."""
    call.query = call.query + 0 * _behind(call.query)


def _from_the_start(array: Any) -> Any:
    found = _owner(array) if array.size else None
    if found is None or found[1] == 0 or min(array.strides) < 0:
        return array
    memory = found[0][: found[0].size]
    steps = tuple(stride // array.itemsize for stride in array.strides)
    at = sum(
        np.arange(n).reshape(-1, *[1] * (array.ndim - 1 - axis)) * steps[axis] for axis, n in enumerate(array.shape)
    )
    return memory[at]


def _behind(array: Any) -> Any:
    """What stands in memory behind the last row of each matrix of an array, if it belongs to its owner; else 0."""
    found = _owner(array) if array.size else None
    if found is None or array.strides[-2] <= 0:
        return array.dtype.type(0)
    memory, start = found
    steps = tuple(stride // array.itemsize for stride in array.strides)
    end = start + (array.shape[-2] - 1) * steps[-2] + steps[-2]
    return memory[end] if end < memory.size else array.dtype.type(0)
