"""Tiles and their remainders: bugs that show for some sizes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import PositionBias

from ._base import Attention, Call, Tiled
from ._mutant import after, before, step

__all__: list[str] = []


def _lost(call: Call, hidden: Any) -> None:
    """Keys that are not attended to, by a bias: a mask would make the row clean."""
    bias = 0 if call.bias is None else Attention().dense(call, call.bias)
    work = np.float64 if call.query.dtype == np.float64 else np.float32
    if isinstance(call.bias, PositionBias) or call.bias is None or not np.all(hidden):
        call.bias = np.where(hidden, work(-np.inf), np.asarray(bias, work))


def _keys(change: Callable[[int], Any]) -> Callable[[Call], None]:
    """Some keys are lost: ``change(N)`` says where they begin, or None."""

    def spoil(call: Call) -> None:
        start = change(call.N)
        if start is not None and call.N > 1:
            _lost(call, np.arange(call.N) >= start)

    spoil.__name__, spoil.__doc__ = change.__name__, change.__doc__
    return spoil


def _last_tile(N: int, tile: int) -> int:
    return (N - 1) // tile * tile


@before("tiles", "IA-E-16", only_full=True)
@_keys
def last_tile_dropped_at_37_of_64(N: int) -> Any:
    """The last tile of keys is dropped when N mod 64 is 37."""
    return _last_tile(N, 64) if N % 64 == 37 and N > 64 else None


@before("tiles", "IA-E-16")
@_keys
def last_key_dropped_at_1_of_32(N: int) -> Any:
    """The last key is dropped when N mod 32 is 1."""
    return N - 1 if N % 32 == 1 and N > 1 else None


@before("tiles", "IA-E-16", only_full=True)
@_keys
def last_keys_dropped_at_5_of_16(N: int) -> Any:
    """A vector load leaves the last key out when N mod 16 is 5."""
    return N - 1 if N % 16 == 5 and N > 16 else None


@before("tiles", "IA-E-16")
@_keys
def last_tile_dropped_where_it_is_full(N: int) -> Any:
    """N // 64 tiles and a rest: where there is no rest, the last full tile is taken for it and dropped."""
    return N - 64 if N % 64 == 0 and N > 64 else None


@before("tiles", "IA-E-16", only_full=True)
@_keys
def last_tile_dropped_where_it_is_odd(N: int) -> Any:
    """Pairs of tiles: an odd number of tiles of 32, from five on, loses the last when it has one key less than full."""
    return _last_tile(N, 32) if N % 32 == 31 and N // 32 == 4 else None


@before("tiles", "IA-E-18")
@_keys
def keys_beyond_1024_lost(N: int) -> Any:
    """A block of threads has 1024 of them."""
    return 1024 if N > 1024 else None


@before("tiles", "IA-E-16", "IA-E-18")
@_keys
def keys_beyond_128_lost_in_odd_tiles(N: int) -> Any:
    """Beyond 128 keys the last one of an odd number is lost."""
    return N - 1 if N > 128 and N % 2 else None


def _one_key_more(call: Call) -> None:
    """A key and a value of zeros are attended to."""
    shape = (*call.scores_shape[:-1], 1)
    if call.bias is not None:
        bias = np.broadcast_to(Attention().dense(call, call.bias), call.scores_shape)
        call.bias = np.concatenate([bias, np.zeros(shape, bias.dtype)], axis=-1)
    if call.mask is not None:
        mask = np.broadcast_to(call.mask, call.scores_shape)
        call.mask = np.concatenate([mask, np.ones(shape, bool)], axis=-1)
    call.key, call.value = (
        np.concatenate([a, np.zeros((*a.shape[:-2], 1, a.shape[-1]), a.dtype)], axis=-2) for a in (call.key, call.value)
    )


@before("tiles", "IA-E-16")
def padding_counted_at_63_of_64(call: Call) -> None:
    """When one key is missing to a full tile of 64, the padding is attended to."""
    if call.N % 64 == 63:
        _one_key_more(call)


@before("tiles", "IA-F-12", "IA-E-13")
def padding_counted(call: Call) -> None:
    """Keys are padded with zeros to a multiple of 4, and the first one of them is attended to."""
    if call.N % 4:
        _one_key_more(call)


@before("tiles", "IA-E-16")
def key_counted_twice_at_the_border(call: Call) -> None:
    """Tiles of 64 overlap by one key."""
    if call.N > 64:
        group = np.where(np.arange(call.N) == 64, np.float32(np.log(2)), np.float32(0))
        bias = 0 if call.bias is None else Attention().dense(call, call.bias)
        work = np.float64 if call.query.dtype == np.float64 else np.float32
        call.bias = np.asarray(bias, work) + group.astype(work)


class _Rows(Tiled):
    tile = 64


def _rows(size: int, rest: int) -> Callable[[Call], bool]:
    return lambda call: call.M > size and call.M % size == rest


@after("tiles", "IA-E-17")
def last_row_repeats_at_1_of_32(call: Call, output: Any, lse: Any) -> Any:
    """When M mod 32 is 1 the last row is a copy of the one before."""
    rows = np.arange(call.M)
    return output[..., np.where(_rows(32, 1)(call) & (rows == call.M - 1), rows - 1, rows), :]


@after("tiles", "IA-E-17", only_full=True)
def last_row_zero_at_41_of_64(call: Call, output: Any, lse: Any) -> Any:
    """When M mod 64 is 41 the last row is not written."""
    left = _rows(64, 41)(call) & (np.arange(call.M) == call.M - 1)
    return np.where(left[:, None], output.dtype.type(0), output)


@after("tiles", "IA-E-17")
def rows_beyond_128_of_another_query(call: Call, output: Any, lse: Any) -> Any:
    """Row i beyond 128 is that of query i - 128."""
    return output[..., np.arange(call.M) % 128, :] if call.M > 128 else output


@before("tiles", "IA-E-17")
def queries_beyond_64_with_a_mask_of_the_first_tile(call: Call) -> None:
    """The second tile of queries has the bias of the first one."""
    if isinstance(call.bias, np.ndarray) and call.bias.ndim > 1 and call.bias.shape[-2] > 64:
        call.bias = call.bias[..., np.arange(call.M) % 64, :]


@after("tiles", "IA-F-09", "IA-F-01")
def last_column_lost_where_odd(call: Call, output: Any, lse: Any) -> Any:
    """Columns are written in pairs: the last one of an odd number stays 0."""
    left = (np.arange(call.Dv) == call.Dv - 1) & (call.Dv % 2 == 1)
    return np.where(left, output.dtype.type(0), output)


@step("tiles", "products", "IA-F-12")
def odd_width_cut(self: Attention, call: Call, q: Any, k: Any) -> Any:
    """A vector load of two: with D = 1 nothing is multiplied, and with an odd D the last column is lost."""
    even = call.D - call.D % 2
    return Attention.products(self, call, q[..., :even], k[..., :even])


@step("tiles", "parts", "IA-E-16", base=_Rows)
def tail_not_masked(self: Tiled, call: Call) -> Any:
    """The last tile of 64 begins 64 keys before the end, and counts some keys twice."""
    parts = Tiled.parts(self, call)
    return [*parts[:-1], slice(call.N - 64, call.N)] if call.N > 64 else parts
