"""The backward Pallas kernels: one for what belongs to queries and to lines, one for keys, one for a matrix.

With ``p_ij = exp(s_ij - lse_i)`` and ``r_i = <do_i, o_i> - d lse_i``, ``ds_ij = p_ij (<do_i, v_j> - r_i)`` (IA-G-12).
All compute the tiles of p and ds anew. No two programs add to the same number, so that results are the same in every
call.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ._pallas_forward import compiled_for, specs_order, specs_over, specs_rows, specs_tables
from ._pallas_plan import ANY, FOLDED, SEARCH, Lines, Over, Plan, Rows, Tables, order_of
from ._pallas_sums import Running, sums_of_tile
from ._pallas_tile import (
    Tile,
    along,
    bias_at,
    cells_of,
    exponentials,
    hidden,
    line_of,
    over_tiles,
    product,
    weighted_sum,
)

__all__ = ["backward"]


class Given(NamedTuple):
    """What comes back for each query: cotangent of the output, the lse as two numbers, and r."""

    cotangent: Any  # (B, H, M, Dv)
    low: Any  # (B, H, M)
    above: Any
    rest: Any


def backward(
    plan: Plan, rows: Rows, lines: Lines | None, over: Over, *given: Any, wanted: tuple[bool, bool]
) -> tuple[Rows, Lines | None, Any]:
    """Gradients of rows, of lines (no knots), and of a matrix.

    ``wanted`` says whether those of value positions and of the matrix are; zeros and None stand for what is not.
    """
    # On its knot a unit is not active: for derivatives knots have cells of their own.
    plan = plan._replace(smooth=False)
    M, _ = plan.padded
    ends = ((0, 0), (0, 0), (0, M - plan.M))
    cotangent, low, above, rest = given
    padded = Given(
        jnp.pad(cotangent, (*ends, (0, plan.widths[1] - plan.Dv))),
        jnp.pad(low, ends, constant_values=jnp.inf),
        *(jnp.pad(one, ends) for one in (above, rest)),
    )
    tables = None if lines is None else plan.tables_of(lines)
    whole, shapes = plan.pad_rows(rows), plan.pad_over(over)
    d_query, d_queries, d_slopes, d_intercepts = _queries(plan, whole, padded, tables, shapes)
    d_key, d_value, d_values = _keys(plan, whole, padded, tables, shapes, wanted[0])
    d_rows = Rows(
        d_query[:, :, : plan.M, : plan.D],
        d_key[:, :, : plan.N, : plan.D].astype(rows.key.dtype),
        d_value[:, :, : plan.N, : plan.Dv].astype(rows.value.dtype),
    )
    d_lines = d_bias = None
    if lines is not None:
        d_queries = _summed(d_queries[:, : plan.M], lines.queries)
        d_values = jnp.zeros_like(lines.values) if d_values is None else _summed(d_values[:, : plan.N], lines.values)
        d_lines = Lines(d_queries, d_values, None, d_slopes, d_intercepts)
    if wanted[1]:
        d_bias = _matrix(plan, whole, padded, shapes)
        m, n = over.bias.shape[-2:]
        d_bias = d_bias[..., :m, :n].astype(over.bias.dtype)
    elif over.bias is not None:
        d_bias = jnp.zeros_like(over.bias)
    return d_rows, d_lines, d_bias


def _summed(gradient: Any, positions: Any) -> Any:
    """Over the batch, where that shares its positions."""
    return jnp.sum(gradient, 0, keepdims=True) if positions.shape[0] == 1 else gradient


def _queries(plan: Plan, rows: Rows, given: Given, tables: Tables | None, over: Over) -> tuple[Any, Any, Any, Any]:
    """Gradients of queries, of their positions (B, M), and of slopes and intercepts (H, 2 K + 1)."""
    tiling = plan.tiling("queries")
    (M, N), (D, Dv), size = plan.padded, plan.widths, tiling.rows
    B, H, blocks = plan.batch, plan.heads, M // size
    order = None if tables is None else order_of(plan, tables, "queries")
    rows_of_head = pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, i))
    specs_given = Given(pl.BlockSpec((None, None, size, Dv), lambda i, h, b: (b, h, i, 0)), *[rows_of_head] * 3)
    out_specs = [pl.BlockSpec((None, None, size, D), lambda i, h, b: (b, h, i, 0))]
    out_shape = [jax.ShapeDtypeStruct(rows.query.shape, rows.query.dtype)]
    arguments: list[Any] = [rows, given, tables, order, over]
    specs: list[Any] = [specs_rows(plan, (size, N)), specs_given, specs_tables(tables, (size, N)), specs_order(order)]
    specs.append(specs_over(over))
    aliases = {}
    if tables is not None:
        cells = tables.slopes.shape[1]
        sums = jax.ShapeDtypeStruct((B, H, blocks, 2, cells), plan.work)
        own = pl.BlockSpec((None, None, None, 2, cells), lambda i, h, b: (b, h, i, 0, 0))
        out_specs += [rows_of_head, own]
        out_shape += [jax.ShapeDtypeStruct((B, H, M), plan.work), sums]
        # A program sees the zeros as what it has added up so far.
        aliases = {len(jax.tree.leaves(arguments)): 2}
        arguments.append(jnp.zeros(sums.shape, sums.dtype))
        specs.append(own)
    found = pl.pallas_call(
        functools.partial(_queries_kernel, plan),
        grid=(blocks, H, B),
        in_specs=specs,
        out_specs=out_specs,
        out_shape=out_shape,
        input_output_aliases=aliases,
        **compiled_for(plan, tiling, "ia_core_backward_queries"),
    )(*arguments)
    if tables is None:
        return found[0], None, None, None
    added = jnp.sum(found[2], (0, 2), dtype=jax.dtypes.canonicalize_dtype(jnp.float64))  # (H, 2, cells)
    near, far = jnp.moveaxis(added[..., : 2 * int(plan.knots or 0) + 1], 1, 0).astype(plan.work)
    return found[0], -jnp.sum(found[1], 1), far, near


def _keys(plan: Plan, rows: Rows, given: Given, tables: Tables | None, over: Over, moves: bool) -> tuple[Any, Any, Any]:
    """Gradients of keys and values, and of the values' positions (B, N) where these ``moves``."""
    tiling = plan.tiling("keys")
    (M, N), (D, Dv), size = plan.padded, plan.widths, tiling.columns
    B, H = plan.batch, plan.heads
    order = None if tables is None else order_of(plan, tables, "keys")
    row_of_head = pl.BlockSpec((None, None, M), lambda i, h, b: (b, h, 0))
    specs_given = Given(pl.BlockSpec((None, None, M, Dv), lambda i, h, b: (b, h, 0, 0)), *[row_of_head] * 3)
    # Heads that share keys add their gradients before the one rounding.
    kind = plan.work if plan.group > 1 else plan.query
    out_shape = [jax.ShapeDtypeStruct((B, H, N, width), kind) for width in (D, Dv)]
    out_specs = [pl.BlockSpec((None, None, size, width), lambda i, h, b: (b, h, i, 0)) for width in (D, Dv)]
    if tables is not None and moves:
        out_shape.append(jax.ShapeDtypeStruct((B, H, N), plan.work))
        out_specs.append(pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, i)))
    d_key, d_value, *moved = pl.pallas_call(
        functools.partial(_keys_kernel, plan),
        grid=(N // size, H, B),
        in_specs=[
            specs_rows(plan, (M, size), keys=True),
            specs_given,
            specs_tables(tables, (M, size), keys=True),
            specs_order(order),
            specs_over(over),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        **compiled_for(plan, tiling, "ia_core_backward_keys"),
    )(rows, given, tables, order, over)
    if plan.group > 1:
        d_key, d_value = (to.reshape(B, plan.key_heads, plan.group, *to.shape[2:]).sum(2) for to in (d_key, d_value))
    return d_key, d_value, jnp.sum(moved[0], 1) if moved else None


def _matrix(plan: Plan, rows: Rows, given: Given, over: Over) -> Any:
    """The gradient of a bias that is a matrix, summed over every axis along which it counts for all."""
    tiling = plan.tiling("bias")
    B, H, M, N = over.bias.shape
    size = (1 if M == 1 else tiling.rows, 1 if N == 1 else tiling.columns)

    def whole(array: Any) -> Any:
        return pl.BlockSpec(array.shape, lambda i, j, bh: (0,) * array.ndim)

    return pl.pallas_call(
        functools.partial(_matrix_kernel, plan),
        grid=(M // size[0], N // size[1], B * H),
        in_specs=jax.tree.map(whole, (rows, given, over)),
        out_specs=pl.BlockSpec((None, None, *size), lambda i, j, bh: (bh // H, bh % H, i, j)),
        out_shape=jax.ShapeDtypeStruct(over.bias.shape, plan.work),
        **compiled_for(plan, tiling, "ia_core_backward_matrix"),
    )(rows, given, over)


def _gradient_of_scores(plan: Plan, p: Any, dp: Any, r: Any, over: Over, kind: int | None, shift: int = 0) -> Any:
    ds = p * (dp - r)
    if over.bias is not None or over.mask is not None or kind == SEARCH:
        # Nothing flows where nothing is read, also where a product is not finite.
        ds = jnp.where(p == 0.0, 0.0, ds)
    return ds * 2.0**-shift if shift else ds


def _queries_kernel(
    plan: Plan, rows: Rows, given: Given, tables: Tables | None, order: Any, over: Over, *others: Any
) -> None:
    if tables is None:
        (d_query,) = others
        moved_out = sums = None
    else:
        _, d_query, moved_out, sums = others
    tiling = plan.tiling("queries")
    size, columns = tiling.rows, tiling.columns
    q, do, above, r = rows.query[...], given.cotangent[...], given.above[...], given.rest[...]
    i = pl.program_id(0) * size + jnp.arange(size, dtype=jnp.int32)
    p_at: Any = None if tables is None else tables.queries[...]

    def turn(kind: int | None, tile: Tile, carry: Any) -> Any:
        dq, moved, running = carry
        at = along(tile.number, columns)
        k, v = rows.key[at, :], rows.value[at, :]
        s = product(plan, q, k, (1, 1)) * plan.scale
        low: Any = given.low[...]
        x: Any = None
        p_here = p_at
        if tables is not None and kind is not None:
            x = tables.values[at]
            if kind == FOLDED:
                slope, intercept = line_of(tables, tile.first)
                origin = tables.values[at.start]
                x, p_here = x - origin, p_at - origin
                s, low = s + (slope * x + intercept)[None, :], low + slope * p_here
            else:
                s = s + bias_at(plan, x[None, :] - p_at[:, None], tile, tables, kind)
        s = hidden(plan, s, over, i, tile.number * columns + jnp.arange(columns, dtype=jnp.int32))
        p = exponentials(s, low[:, None], above[:, None])
        dp = product(plan, do, v, (1, 1))
        ds = _gradient_of_scores(plan, p, dp, r[:, None], over, kind)
        if tables is not None and kind is not None:
            more, running = sums_of_tile(plan, ds, x, p_here, tile, tables, sums, running, kind)
            moved = moved + more
        return weighted_sum(plan, dq, ds, k, plan.gradient_parts), moved, running

    work = jnp.dtype(plan.work)
    begin = (jnp.zeros(q.shape, work), jnp.zeros((size,), work), Running.begin(work))
    dq, moved, _ = over_tiles(plan, order, plan.padded[1] // columns, turn, begin)
    d_query[...] = (dq * plan.scale).astype(d_query.dtype)
    if moved_out is not None:
        moved_out[...] = moved


def _keys_kernel(
    plan: Plan, rows: Rows, given: Given, tables: Tables | None, order: Any, over: Over, *outputs: Any
) -> None:
    """Tiles are (keys, queries) here."""
    d_key, d_value, *moved_out = outputs
    tiling = plan.tiling("keys")
    size, columns = tiling.columns, tiling.rows
    k, v = rows.key[...], rows.value[...]
    j = pl.program_id(0) * size + jnp.arange(size, dtype=jnp.int32)
    x: Any = None if tables is None else tables.values[...]

    def turn(kind: int | None, tile: Tile, carry: Any) -> Any:
        dk, dv, moved = carry
        at = along(tile.number, columns)
        q, do, low, above, r = rows.query[at, :], given.cotangent[at, :], *(one[at] for one in given[1:])
        s = product(plan, k, q, (1, 1)) * plan.scale
        t: Any = None
        if tables is not None and kind is not None:
            p_at = tables.queries[at]
            if kind == FOLDED:
                slope, intercept = line_of(tables, tile.first)
                origin = tables.queries[at.start]
                s = s + (slope * (x - origin))[:, None]
                low = low + (slope * (p_at - origin) - intercept)
            else:
                t = x[:, None] - p_at[None, :]
                s = s + bias_at(plan, t, tile, tables, kind)
        i = tile.number * columns + jnp.arange(columns, dtype=jnp.int32)
        s = hidden(plan, s, over, i, j, keys_first=True)
        p = exponentials(s, low[None, :], above[None, :], plan.shift)
        dp = product(plan, v, do, (1, 1))
        ds = _gradient_of_scores(plan, p, dp, r[None, :], over, kind, plan.shift)
        if moved_out and tables is not None and kind is not None:
            moved = moved + _slopes_times(plan, ds, t, tile, tables, kind)
        dv = weighted_sum(plan, dv, p, do, plan.parts)
        return weighted_sum(plan, dk, ds, q, plan.gradient_parts), dv, moved

    work = jnp.dtype(plan.work)
    begin = (jnp.zeros(k.shape, work), jnp.zeros(v.shape, work), jnp.zeros((size,), work))
    dk, dv, moved = over_tiles(plan, order, plan.padded[0] // columns, turn, begin)
    d_key[...] = (dk * plan.scale).astype(d_key.dtype)
    d_value[...] = (dv * 2.0**-plan.shift).astype(d_value.dtype)
    if moved_out:
        moved_out[0][...] = moved


def _slopes_times(plan: Plan, ds: Any, t: Any, tile: Tile, tables: Tables, kind: int) -> Any:
    """Row sums of ds times the slope."""
    slope, _ = line_of(tables, tile.first)
    if kind == FOLDED:
        return jnp.sum(ds, 1) * slope
    if kind == SEARCH:
        return jnp.sum(ds * tables.slopes[cells_of(plan, t, tables)], 1)

    def passed(at: Any, slope: Any) -> Any:
        knot, cell = tables.knots[tile.first + at], 2 * (tile.first + at)
        slope = jnp.where(t >= knot, tables.slopes[cell + 1], slope)
        return jnp.where(t > knot, tables.slopes[cell + 2], slope)

    slope = jnp.zeros_like(ds) + slope
    if kind == ANY:
        slope = jax.lax.fori_loop(jnp.int32(0), tile.count, passed, slope)
    else:
        for at in range(kind):
            slope = passed(at, slope)
    return jnp.sum(ds * slope, 1)


def _matrix_kernel(plan: Plan, rows: Rows, given: Given, over: Over, found: Any) -> None:
    tiling = plan.tiling("bias")
    B, H, M, N = over.bias.shape
    rows_apart = plan.padded[0] // tiling.rows if M == 1 else 1
    columns_apart = plan.padded[1] // tiling.columns if N == 1 else 1
    turns = (columns_apart, rows_apart, plan.heads // H, plan.batch // B)
    of_head = pl.program_id(2)
    h0, b0 = jax.lax.rem(of_head, jnp.int32(H)), jax.lax.div(of_head, jnp.int32(H))
    own = (pl.program_id(1), pl.program_id(0), h0, b0)

    def turn(at: Any, total: Any) -> Any:
        places = []
        for count, begin in zip(turns, own, strict=True):
            places.append(begin + jax.lax.rem(at, jnp.int32(count)))
            at = jax.lax.div(at, jnp.int32(count))
        column, row, h, b = places
        hk = jax.lax.div(h, jnp.int32(plan.group))
        i, j = along(row, tiling.rows), along(column, tiling.columns)
        s = product(plan, rows.query[b, h, i, :], rows.key[b, hk, j, :], (1, 1)) * plan.scale
        leading = Over(
            *(
                () if array is None else (b if array.shape[0] > 1 else 0, h if array.shape[1] > 1 else 0)
                for array in over
            )
        )
        numbers = (
            row * tiling.rows + jnp.arange(tiling.rows, dtype=jnp.int32),
            column * tiling.columns + jnp.arange(tiling.columns, dtype=jnp.int32),
        )
        s = hidden(plan, s, over, *numbers, leading=leading)
        p = exponentials(s, given.low[b, h, i][:, None], given.above[b, h, i][:, None])
        dp = product(plan, given.cotangent[b, h, i, :], rows.value[b, hk, j, :], (1, 1))
        return total + _gradient_of_scores(plan, p, dp, given.rest[b, h, i][:, None], over, None)

    begin = jnp.zeros((tiling.rows, tiling.columns), plan.work)
    total = jax.lax.fori_loop(jnp.int32(0), jnp.int32(math.prod(turns)), turn, begin)
    if M == 1:
        total = jnp.sum(total, 0, keepdims=True)
    if N == 1:
        total = jnp.sum(total, 1, keepdims=True)
    found[...] = total
