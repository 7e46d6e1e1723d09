"""The forward Pallas kernel: a block of queries of one head against all keys, tile by tile, with an online softmax."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from ._pallas_plan import FOLDED, Lines, Order, Over, Plan, Rows, Tables, Tiling, order_of
from ._pallas_tile import (
    LN2,
    LOG2E,
    Tile,
    along,
    bias_at,
    exponentials,
    hidden,
    line_of,
    over_tiles,
    product,
    weighted_sum,
)

__all__ = ["compiled_for", "forward", "specs_over", "specs_rows", "specs_tables"]


def forward(plan: Plan, rows: Rows, lines: Lines | None, over: Over) -> tuple[Any, Any, Any, Any]:
    """Output (B, H, M, Dv) and lse (B, H, M), and this as two numbers (B, H, M) for the gradient.

    They are the largest score and, in units of log 2, how far the lse is above it; +inf and 0 for a row without
    anything to attend to. Of a large score their sum would hold the first alone.
    """
    tiling = plan.tiling("forward")
    M, N = plan.padded
    _, Dv = plan.widths
    tables = order = None
    if lines is not None:
        tables = plan.tables_of(lines)
        order = order_of(plan, tables, "forward")
    over = plan.pad_over(over)
    block = tiling.rows
    given = (plan.pad_rows(rows), tables, order, over)
    row_of_head = pl.BlockSpec((None, None, block), lambda i, h, b: (b, h, i))
    output, *rests = pl.pallas_call(
        functools.partial(_kernel, plan),
        grid=(M // block, plan.heads, plan.batch),
        in_specs=(
            specs_rows(plan, (block, N)),
            specs_tables(tables, (block, N)),
            specs_order(order),
            specs_over(over),
        ),
        out_specs=[
            pl.BlockSpec((None, None, block, Dv), lambda i, h, b: (b, h, i, 0)),
            *[row_of_head] * 3,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((plan.batch, plan.heads, M, Dv), plan.work),
            *[jax.ShapeDtypeStruct((plan.batch, plan.heads, M), plan.work)] * 3,
        ],
        **compiled_for(plan, tiling, "ia_core_forward"),
    )(*given)
    lse, low, above = (rest[:, :, : plan.M] for rest in rests)
    return output[:, :, : plan.M, : plan.Dv], lse, low, above


def compiled_for(plan: Plan, tiling: Tiling, name: str) -> dict[str, Any]:
    """What ``pallas_call`` is told besides shapes."""
    parameters = pallas_triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages)
    return {"interpret": plan.interpret, "compiler_params": parameters, "name": name}


def specs_rows(plan: Plan, sizes: tuple[int, int], *, keys: bool = False) -> Rows:
    """Which rows a program sees: a block of queries and all keys, or all queries and a block of ``keys``."""
    D, Dv = plan.widths
    rows, columns = sizes
    group = plan.group
    return Rows(
        pl.BlockSpec((None, None, rows, D), lambda i, h, b: (b, h, 0 if keys else i, 0)),
        pl.BlockSpec((None, None, columns, D), lambda i, h, b: (b, h // group, i if keys else 0, 0)),
        pl.BlockSpec((None, None, columns, Dv), lambda i, h, b: (b, h // group, i if keys else 0, 0)),
    )


def specs_tables(tables: Tables | None, sizes: tuple[int, int], *, keys: bool = False) -> Tables | None:
    """Positions likewise, and the lines of one head."""
    if tables is None:
        return None
    queries, values = ((lambda b: 0) if at.shape[0] == 1 else (lambda b: b) for at in (tables.queries, tables.values))
    cells = pl.BlockSpec((None, tables.slopes.shape[1]), lambda i, h, b: (h, 0))
    return Tables(
        pl.BlockSpec((None, sizes[0]), lambda i, h, b: (queries(b), 0 if keys else i)),
        pl.BlockSpec((None, sizes[1]), lambda i, h, b: (values(b), i if keys else 0)),
        pl.BlockSpec(tables.knots.shape, lambda i, h, b: (0,)),
        cells,
        cells,
    )


def specs_order(order: Order | None) -> Order | None:
    """The entries of one block."""
    if order is None:
        return None
    one = order.ends.shape[0] == 1
    return Order(*(pl.BlockSpec((None, None, a.shape[2]), lambda i, h, b: (0 if one else b, i, 0)) for a in order))


def specs_over(over: Over) -> Over:
    """What lies over the scores of one head; axes of size 1 count for all."""
    specs: list[Any] = []
    for array in over:
        if array is None:
            specs.append(None)
            continue
        B, H, M, N = array.shape

        def places(i: Any, h: Any, b: Any, B: int = B, H: int = H) -> Any:
            return (b if B > 1 else 0, h if H > 1 else 0, 0, 0)

        specs.append(pl.BlockSpec((None, None, M, N), places))
    return Over(*specs)


def _kernel(
    plan: Plan, rows: Rows, tables: Tables | None, order: Order | None, over: Over, output: Any, *rests: Any
) -> None:
    size, columns, _, _ = plan.tiling("forward")
    tiles = plan.padded[1] // columns
    q = rows.query[...]
    i = pl.program_id(0) * size + jnp.arange(size, dtype=jnp.int32)
    p_at = None if tables is None else tables.queries[...]

    def turn(kind: int | None, tile: Tile, carry: Any) -> Any:
        total_rows, top, total = carry
        at = along(tile.number, columns)
        s = product(plan, q, rows.key[at, :], (1, 1)) * plan.scale
        apart: Any = 0.0
        if tables is not None:
            s, apart = _with_bias(plan, s, p_at, tables, tile, kind, at)
        s = hidden(plan, s, over, i, tile.number * columns + jnp.arange(columns, dtype=jnp.int32))
        own = jnp.max(s, 1)
        new = jnp.maximum(top, own + apart)
        safe = jnp.where(new == -jnp.inf, 0.0, new)
        local = safe
        if kind == FOLDED:  # rounded, `new - apart` is not what was largest
            local = jnp.where(own + apart == new, own, jnp.maximum(safe - apart, own))
            local = jnp.where(new == -jnp.inf, 0.0, local)
        p = exponentials(s, local[:, None], 0.0, plan.shift)
        kept = jnp.exp2((top - safe) * LOG2E)
        total_rows = weighted_sum(plan, total_rows * kept[:, None], p, rows.value[at, :], plan.parts)
        return total_rows, new, total * kept + jnp.sum(p, 1)

    work = jnp.dtype(plan.work)
    begin = (
        jnp.zeros((size, plan.widths[1]), work),
        jnp.full((size,), -jnp.inf, work),
        jnp.zeros((size,), work),
    )
    total_rows, top, total = over_tiles(plan, order, tiles, turn, begin)
    empty = total == 0.0
    whole = jnp.where(empty, 1.0, total)
    output[...] = total_rows / whole[:, None]
    above = jnp.where(empty, 0.0, jnp.log2(whole) - plan.shift)
    lse, low, rest = rests
    lse[...] = jnp.where(empty, -jnp.inf, top + above * LN2)
    low[...] = jnp.where(empty, jnp.inf, top)
    rest[...] = above


def _with_bias(plan: Plan, s: Any, p_at: Any, tables: Tables, tile: Tile, kind: int | None, at: Any) -> tuple[Any, Any]:
    """Scores with the bias, but for what is the same along a row, which stands apart."""
    x = tables.values[at]
    if kind != FOLDED:
        assert kind is not None
        return s + bias_at(plan, x[None, :] - p_at[:, None], tile, tables, kind), 0.0
    slope, intercept = line_of(tables, tile.first)
    origin = tables.values[at.start]
    return s + (slope * (x - origin) + intercept)[None, :], slope * (origin - p_at)
