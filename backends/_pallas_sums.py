"""Sums over the cells of a position bias: what the Pallas kernel for queries adds up for the gradients of its lines."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._pallas_plan import ANY, FOLDED, SEARCH, Plan, Tables
from ._pallas_tile import Tile, cells_of, line_of

__all__ = ["Running", "sums_of_tile"]


class Running(NamedTuple):
    """The sums over the folded tiles of one line, which follow each other: written every time, and never read."""

    cell: Any
    near: Any
    far: Any

    @classmethod
    def begin(cls, work: Any) -> Running:
        zero = jnp.zeros((), work)
        return cls(jnp.int32(-1), zero, zero)


def sums_of_tile(
    plan: Plan, ds: Any, x: Any, p: Any, tile: Tile, tables: Tables, sums: Any, running: Running, kind: int
) -> tuple[Any, Running]:
    """Row sums of ds times the slope; adds the sums of ds and of ds t over each cell to a program's own ``sums``.

    Scalars are read and written by one thread of a program, in order. Folded tiles come before all others.
    """
    if kind == FOLDED:  # x and p are small
        slope, _ = line_of(tables, tile.first)
        rows = jnp.sum(ds, 1)
        near, far = jnp.sum(rows), jnp.sum(jnp.sum(ds * x[None, :], 1) - rows * p)
        cell = 2 * tile.first
        same = cell == running.cell
        near, far = near + jnp.where(same, running.near, 0.0), far + jnp.where(same, running.far, 0.0)
        sums[0, cell], sums[1, cell] = near, far
        return rows * slope, Running(cell, near, far)
    t = x[None, :] - p[:, None]
    if kind == SEARCH:
        return _sums_by_search(plan, ds, t, tables, sums), running
    far_ds = ds * t

    def cell_of(cell: Any, inside: Any) -> Any:
        rows = jnp.sum(jnp.where(inside, ds, 0.0), 1)
        _add(sums, cell, jnp.sum(rows), jnp.sum(jnp.sum(jnp.where(inside, far_ds, 0.0), 1)))
        return rows * tables.slopes[cell]

    def below_knot(at: Any, moved: Any) -> Any:
        """The cell that ends at a knot of the tile, or beyond it, and the one on that knot."""
        number = tile.first + at
        knot, before = tables.knots[number], tables.knots[jnp.maximum(number - 1, 0)]
        before = jnp.where(number == 0, -jnp.inf, before)
        moved = moved + cell_of(2 * number, (t > before) & (t < knot))
        # Of knots that coincide one counts.
        on = (t == knot) & (knot != tables.knots[number + 1])
        return moved + cell_of(2 * number + 1, on)

    moved = jnp.zeros_like(p)
    if kind == ANY:
        return jax.lax.fori_loop(jnp.int32(0), tile.count + 1, below_knot, moved), running
    for at in range(kind + 1):
        moved = below_knot(at, moved)
    return moved, running


def _sums_by_search(plan: Plan, ds: Any, t: Any, tables: Tables, sums: Any) -> Any:
    far_ds = jnp.where(ds == 0.0, 0.0, ds * t)  # 0 times what is not finite
    cell = cells_of(plan, t, tables)

    def of_cell(c: Any, nothing: Any) -> Any:
        near, far = (jnp.sum(jnp.sum(jnp.where(cell == c, each, 0.0), 1)) for each in (ds, far_ds))
        _add(sums, c, near, far)
        return nothing

    jax.lax.fori_loop(jnp.min(jnp.min(cell, 1)), jnp.max(jnp.max(cell, 1)) + 1, of_cell, jnp.int32(0))
    return jnp.sum(ds * tables.slopes[cell], 1)


def _add(sums: Any, cell: Any, near: Any, far: Any) -> None:
    sums[0, cell] = sums[0, cell] + near
    sums[1, cell] = sums[1, cell] + far
