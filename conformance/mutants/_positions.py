"""A bias as a function of positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ia_core import BoxMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias

from ._base import Attention, Call
from ._mutant import before, step

__all__: list[str] = []


def _positions(*labels: str, **claims: Any) -> Callable[..., Any]:
    """``change(bias)`` gives another PositionBias."""

    def decorate(change: Callable[[PositionBias], Any]) -> Callable[..., Any]:
        def spoil(call: Call) -> None:
            if isinstance(call.bias, PositionBias):
                call.bias = change(call.bias)

        spoil.__name__, spoil.__doc__ = change.__name__, change.__doc__
        before("positions", *labels, **claims)(spoil)
        return change

    return decorate


def _mlp(bias: PositionBias) -> Any:
    return bias.f if isinstance(bias.f, OffsetMLP) else None


def _at(bias: PositionBias, change: Callable[[Any], Any]) -> PositionBias:
    """Query positions changed, of one-dimensional functions."""
    if isinstance(bias.f, BoxMLP):
        return bias
    moved = change(np.asarray(bias.query_positions))
    return bias._replace(query_positions=moved.astype(bias.query_positions.dtype))


@_positions("IA-B-01", "IA-B-02")
def offsets_flipped(bias: PositionBias) -> Any:
    """f(i - j) instead of f(j - i)."""
    f: Any = bias.f
    return bias if _mlp(bias) is None else bias._replace(f=f._replace(w1=-f.w1))


@_positions("IA-P-06", dtypes=("float16", "bfloat16", "float32"))
def positions_in_float16(bias: PositionBias) -> Any:
    """Positions go through float16, which counts to 2048."""
    bias = _at(bias, lambda p: p.astype(np.float16))
    if isinstance(bias.f, BoxMLP):
        return bias
    v = np.asarray(bias.value_positions)
    return bias._replace(value_positions=v.astype(np.float16).astype(v.dtype))


@_positions("IA-B-02", "IA-P-06", dtypes=("bfloat16", "float16", "float32"))
def positions_in_bfloat16(bias: PositionBias) -> Any:
    """Positions go through bfloat16, which counts to 256."""
    return _at(bias, lambda p: p.astype(ml_dtypes.bfloat16))


@_positions("IA-B-02")
def positions_cut_to_integers(bias: PositionBias) -> Any:
    """Real positions lose their fraction."""
    return _at(bias, np.floor)


@_positions("IA-B-06")
def position_update_ignored(bias: PositionBias) -> Any:
    """Query i stands at i, whatever its position says."""
    return _at(bias, lambda p: np.broadcast_to(np.arange(p.shape[-1]), p.shape))


@_positions("IA-B-07")
def positions_of_first_element(bias: PositionBias) -> Any:
    """All elements of the batch have the positions of the first one."""
    return _at(bias, lambda p: np.broadcast_to(p.reshape(-1, p.shape[-1])[0], p.shape))


@_positions("IA-B-10")
def positions_sorted(bias: PositionBias) -> Any:
    """Query positions are taken to be in order."""
    return _at(bias, lambda p: np.sort(p, axis=-1))


@_positions("IA-B-10", "IA-B-02")
def positions_one_apart(bias: PositionBias) -> Any:
    """The bias is built from its first row, moved by one for every query."""
    return _at(bias, lambda p: p[..., :1] + np.arange(p.shape[-1]))


@_positions("IA-B-08")
def positions_from_zero(bias: PositionBias) -> Any:
    """Value j stands at j, whatever its position says."""
    if isinstance(bias.f, BoxMLP):
        return bias
    v = np.asarray(bias.value_positions)
    return bias._replace(value_positions=np.broadcast_to(np.arange(v.shape[-1]), v.shape).astype(v.dtype))


@_positions("IA-B-01", "IA-B-08")
def positions_absolute(bias: PositionBias) -> Any:
    """f(j): the position of the query is not subtracted."""
    return _at(bias, np.zeros_like)


def _function(kind: type, *labels: str) -> Callable[..., Any]:
    """``change(f, offsets)`` gives the dense bias of a function of this kind."""

    def decorate(change: Callable[..., Any]) -> Callable[..., Any]:
        def dense(self: Attention, call: Call, bias: Any) -> Any:
            if not isinstance(bias, PositionBias) or not isinstance(bias.f, kind):
                return Attention.dense(self, call, bias)
            return change(bias.f, bias.f.offsets(bias.query_positions, bias.value_positions))

        dense.__name__, dense.__doc__ = change.__name__, change.__doc__
        step("positions", "dense", *labels)(dense)
        return change

    return decorate


@_function(OffsetMLP, "IA-B-01")
def relu_missing(f: Any, t: Any) -> Any:
    """The two layers have nothing between them."""
    hidden = t[..., None].astype(f.w1.dtype) * f.w1 + f.b1
    return np.moveaxis(np.matmul(hidden, f.w2) + f.b2, -1, -3)


@_function(OffsetMLP, "IA-B-01")
def relu_leaks(f: Any, t: Any) -> Any:
    """A leaky ReLU of slope 0.01."""
    hidden = t[..., None].astype(f.w1.dtype) * f.w1 + f.b1
    return np.moveaxis(np.matmul(np.where(hidden > 0, hidden, 0.01 * hidden).astype(f.w1.dtype), f.w2) + f.b2, -1, -3)


@_function(OffsetMLP, "IA-B-01")
def hidden_bias_dropped(f: Any, t: Any) -> Any:
    """The first layer has no bias."""
    hidden = t[..., None].astype(f.w1.dtype) * f.w1
    return np.moveaxis(np.matmul(np.maximum(hidden, 0), f.w2) + f.b2, -1, -3)


@_function(OffsetTable, "IA-B-04")
def table_nearest(f: Any, t: Any) -> Any:
    """The nearest entry of a table instead of the line between two."""
    return _entries(f, np.rint(t))


@_function(OffsetTable, "IA-B-04")
def table_wraps(f: Any, t: Any) -> Any:
    """Beyond its end a table begins anew."""
    R = f.values.shape[-1] // 2
    return OffsetTable(f.values)((t + R) % (2 * R + 1) - R)


@_function(OffsetTable, "IA-B-04")
def table_ends_in_zero(f: Any, t: Any) -> Any:
    """Beyond its end a table is 0."""
    return np.where((abs(t) <= f.values.shape[-1] // 2)[..., None, :, :], f(t), 0).astype(f.values.dtype)


@_function(OffsetTable, "IA-B-04")
def table_off_by_one(f: Any, t: Any) -> Any:
    """The entry at offset t + 1."""
    return f(t + 1)


@_function(LinearOffset, "IA-B-05")
def linear_without_modulus(f: Any, t: Any) -> Any:
    """-slope t instead of -slope |t|, as is right under a causal mask alone."""
    return (-f.slopes[:, None, None] * t[..., None, :, :]).astype(f.slopes.dtype)


@_function(LinearOffset, "IA-B-05")
def linear_rises(f: Any, t: Any) -> Any:
    """+slope |t|."""
    return (f.slopes[:, None, None] * abs(t)[..., None, :, :]).astype(f.slopes.dtype)


@_positions("IA-B-03")
def box_functions_swapped(bias: PositionBias) -> Any:
    """The function of columns is applied to rows, and the other way round."""
    return bias._replace(f=BoxMLP(bias.f.y, bias.f.x)) if isinstance(bias.f, BoxMLP) else bias


@_positions("IA-B-03")
def box_axes_swapped(bias: PositionBias) -> Any:
    """Boxes are read as (y0, x0, y1, x1)."""
    return bias._replace(query_positions=bias.query_positions[..., [1, 0, 3, 2]]) if _box(bias) else bias


@_positions("IA-B-03")
def box_by_corner_and_size(bias: PositionBias) -> Any:
    """Boxes are read as (x0, y0, width, height)."""
    if not _box(bias):
        return bias
    x0, y0, x1, y1 = np.moveaxis(bias.query_positions, -1, 0)
    return bias._replace(query_positions=np.stack([x0, y0, x0 + x1, y0 + y1], axis=-1))


@_positions("IA-B-09")
def box_grid_by_columns(bias: PositionBias) -> Any:
    """Pixels are numbered by columns: j = c R + r."""
    return _by_columns(bias) if _box(bias) else bias


def _box(bias: PositionBias) -> bool:
    return isinstance(bias.f, BoxMLP) and isinstance(bias.value_positions, Grid)


def _by_columns(bias: PositionBias) -> Any:
    dense = bias.dense()
    R, W = bias.value_positions.y.shape[0], bias.value_positions.x.shape[0]
    by_pixel = dense.reshape(*dense.shape[:-1], R, W)
    return np.ascontiguousarray(np.swapaxes(by_pixel, -1, -2)).reshape(dense.shape)


def _entries(f: Any, t: Any) -> Any:
    R = f.values.shape[-1] // 2
    return np.moveaxis(f.values.T[np.clip(t + R, 0, 2 * R).astype(int)], -1, -3)
