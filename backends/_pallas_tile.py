"""What the Pallas kernels share: products, the bias in a tile of scores, and the loop over tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ._pallas_plan import ANY, SEARCH, Order, Over, Plan, Tables

__all__ = [
    "LN2",
    "LOG2E",
    "Tile",
    "along",
    "bias_at",
    "cells_of",
    "exponentials",
    "hidden",
    "line_of",
    "over_tiles",
    "product",
    "weighted_sum",
]

LOG2E, LN2 = 1 / math.log(2), math.log(2)
_NO_AXES = Over((), ())


class Tile(NamedTuple):
    """Of a block's tiles one: its number, how many knots lie below its offsets, and among them."""

    number: Any
    first: Any
    count: Any


def over_tiles(plan: Plan, order: Order | None, tiles: int, turn: Callable[..., Any], carry: Any) -> Any:
    """``turn(kind, tile, carry)`` for every tile of a program's block, kind by kind; the kind is None without lines."""
    if order is None:
        return jax.lax.fori_loop(0, tiles, lambda at, carry: turn(None, Tile(at, None, None), carry), carry)

    def entry(at: Any) -> Tile:
        at = jnp.minimum(at, jnp.int32(tiles - 1))
        return Tile(order.tile[at], order.first[at], order.count[at])

    begin = jnp.int32(0)
    for number, kind in enumerate(plan.kinds):

        def step(at: Any, state: Any, kind: int = kind) -> Any:
            carry, ahead = state
            # Read a turn ahead, because what lies at an address that the same turn reads is not loaded ahead.
            return turn(kind, ahead, carry), entry(at + jnp.int32(1))

        end = order.ends[number]
        carry, _ = jax.lax.fori_loop(begin, end, step, (carry, entry(begin)))
        begin = end
    return carry


def along(number: Any, size: int) -> Any:
    """The slice of one tile along an axis."""
    return pl.ds(pl.multiple_of(number * size, size), size)


def product(plan: Plan, a: Any, b: Any, axes: tuple[int, int] = (1, 0)) -> Any:
    """The product of two matrices over an axis of each, summed in the dtype of the scores (IA-P-02)."""
    if plan.interpret:  # XLA on the CPU does not have every product of halves; in the wider dtype they are the same
        a, b = a.astype(plan.work), b.astype(plan.work)
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    precision = None if a.dtype in (jnp.float16, jnp.bfloat16) else jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.dtype(plan.work))


def weighted_sum(plan: Plan, total: Any, weights: Any, rows: Any, parts: int) -> Any:
    """``total`` and the product of weights and rows; with ``parts`` weights as a sum of so many of the rows' dtype.

    Added one by one, because Triton makes a product that is added to a number one that begins with it.
    """
    if parts == 0:
        return total + product(plan, weights, rows.astype(plan.work))
    for _ in range(parts):
        part = weights.astype(rows.dtype)
        total = total + product(plan, part, rows)
        weights = weights - part.astype(plan.work)
    return total


def exponentials(s: Any, low: Any, above: Any, shift: int = 0) -> Any:
    """``2 ** (shift - above) exp(s - low)``, at most ``2 ** shift``.

    ``low`` is subtracted first, and leaves nothing of the largest score, unless a compiler fuses the subtraction with
    the product before it, or computes scores twice with other rounding: no weight is more than 1 all the same.
    """
    power = (s - low) * LOG2E + (shift - above)
    return jnp.exp2(jnp.where(power > shift, float(shift), power))


def line_of(tables: Tables, first: Any) -> tuple[Any, Any]:
    """Slope and intercept between the knots number ``first - 1`` and ``first``."""
    return tables.slopes[2 * first], tables.intercepts[2 * first]


def bias_at(plan: Plan, t: Any, tile: Tile, tables: Tables, kind: int) -> Any:
    """The bias of one head at the offsets of a tile."""
    if kind == SEARCH:
        cell = cells_of(plan, t, tables)
        slope = tables.slopes[cell]
        # A line of slope 0 goes on to infinity; nan stays what it is.
        return jnp.where((slope == 0.0) & (t == t), 0.0, slope * t) + tables.intercepts[cell]

    def passed(at: Any, bias: Any) -> Any:
        knot, cell = tables.knots[tile.first + at], 2 * (tile.first + at)
        if not plan.smooth:
            bias = jnp.where(t >= knot, tables.slopes[cell + 1] * t + tables.intercepts[cell + 1], bias)
        return jnp.where(t > knot, tables.slopes[cell + 2] * t + tables.intercepts[cell + 2], bias)

    slope, intercept = line_of(tables, tile.first)
    bias = slope * t + intercept
    if kind == ANY:
        return jax.lax.fori_loop(jnp.int32(0), tile.count, passed, bias)
    for at in range(kind):
        bias = passed(at, bias)
    return bias


def cells_of(plan: Plan, t: Any, tables: Tables) -> Any:
    """The cell of every offset, found by bisection."""
    below = jnp.zeros(t.shape, jnp.int32)
    for step in reversed(range(plan.steps)):
        probe = below + jnp.int32(2**step)
        below = jnp.where(t > tables.knots[probe - 1], probe, below)
    if plan.smooth:
        return 2 * below
    return 2 * below + ((t == tables.knots[below]) & (below < int(plan.knots or 0))).astype(jnp.int32)


def hidden(plan: Plan, s: Any, over: Over, i: Any, j: Any, keys_first: bool = False, leading: Over = _NO_AXES) -> Any:
    """Scores with the matrix that lies over them, -inf where nothing may be attended to.

    ``i`` and ``j`` are the numbers of the tile's queries and keys, which are the scores' last axis unless
    ``keys_first``; ``leading`` are indices of axes before those, where a program sees them.
    """
    if over.bias is not None:
        s = s + _tile_of(over.bias, leading.bias, i, j, keys_first).astype(plan.work)
    if over.mask is not None:
        s = jnp.where(_tile_of(over.mask, leading.mask, i, j, keys_first), s, -jnp.inf)
    if plan.padded[1] != plan.N:
        s = jnp.where((j[:, None] if keys_first else j[None, :]) < plan.N, s, -jnp.inf)
    return s


def _tile_of(array: Any, leading: tuple[Any, ...], i: Any, j: Any, keys_first: bool) -> Any:
    one_row, one_column = (size == 1 for size in array.shape[-2:])
    if one_row and one_column:
        return array[(*leading, 0, 0)]
    if one_row:
        row = array[(*leading, 0, j)]
        return row[:, None] if keys_first else row[None, :]
    if one_column:
        column = array[(*leading, i, 0)]
        return column[None, :] if keys_first else column[:, None]
    shape = (j.shape[0], i.shape[0]) if keys_first else (i.shape[0], j.shape[0])
    places = (i[None, :], j[:, None]) if keys_first else (i[:, None], j[None, :])
    return array[(*leading, *(jnp.broadcast_to(place, shape) for place in places))]
