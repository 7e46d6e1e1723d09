"""The backward kernels for GPUs: one for what belongs to queries and to the bias, one for what belongs to keys.

With ``p_ij = exp(s_ij - lse_i)`` and ``r_i = <do_i, o_i> - d lse_i``, ``ds_ij = p_ij (<do_i, v_j> - r_i)`` (IA-G-12).
Both compute the tiles of p and ds anew. No two programs add to the same number, so that results are the same in every
call.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_forward import (
    LN2,
    LOG2E,
    SIZES,
    load_pairs,
    load_places,
    load_positions,
    load_rows,
    row_step,
    scores_in_tile,
)
from ._triton_sums import TABLES, part_sums
from ._triton_tile import (
    FOLDED,
    KINDS,
    PLAIN,
    SEARCH,
    line_of_tile,
    parts_of,
    product,
    row_zeros,
    weighted_sum,
)

__all__ = ["backward_keys", "backward_queries"]


@triton.jit
def _scores_gradient(
    q, do, k, v, x, p_at, first, count, low, above, r, i, j, edges, slopes, lines, bias, mask, bias_m, bias_n, mask_m,
    mask_n,
    M, N, scale, STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr,
    ROW_TAIL: tl.constexpr, NATURAL: tl.constexpr, SHIFT: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Weights, ds and slopes of a tile. Its axes are those of ``q k^T``: keys and queries may change places.

    The lse is ``low + above``. ``low`` alone is subtracted first, as in the forward kernel; a folded bias is small, and
    its tiles have the sum in ``low``.
    """
    s, slope = scores_in_tile(
        q, k, scale, x, p_at, low, first, count, edges, slopes, lines, bias, bias_m, bias_n,
        mask, mask_m, mask_n, i, j, M, N, STEPS, DENSE, MASKED, TAIL, KIND, False,
    )  # fmt: skip
    if NATURAL:
        s = s * LOG2E + (SHIFT - above)
    elif KIND != FOLDED:
        s += SHIFT - above
    elif SHIFT > 0:
        s += SHIFT
    # No weight is above 1, whatever the rounding of large scores says.
    p = tl.exp2(tl.minimum(s, SHIFT, propagate_nan=tl.PropagateNan.ALL))
    if ROW_TAIL:
        p = tl.where(i < M, p, 0.0)  # the product of a query that is not there and an infinite key is nan
    ds = p * (product(do, tl.trans(v), tl.zeros((do.shape[0], v.shape[0]), tl.float32)) - r)
    if DENSE or MASKED or ROW_TAIL or KIND == SEARCH:
        ds = tl.where(p == 0.0, 0.0, ds)  # nothing flows where nothing is read, also where a product is not finite
    if SHIFT > 0:
        ds *= 2.0**-SHIFT
    return p, ds, slope


@triton.jit
def _queries_with_tile(
    dq, moved, q, do, low, above, r, tile, first, count, line, p_at, i, d, e, key, value, places, edges, slopes,
    lines, bias, mask,
    sums, apart, table, k_n, k_d, v_n, v_d, bias_m, bias_n, mask_m, mask_n, M, N, D, DV, scale,
    COLUMNS: tl.constexpr, STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr,
    ROW_TAIL: tl.constexpr, NATURAL: tl.constexpr, PARTS: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, and of their positions but for the sign, with one more tile of keys."""
    j = tile * COLUMNS + tl.arange(0, COLUMNS)
    x = p_at
    if STEPS > 0:
        x, near = load_places(places, tile, COLUMNS)
    along = x
    if KIND == FOLDED:
        slope, bias_at_0, origin = line
        x, p_at = near, p_at - origin
        along = slope * x + bias_at_0
        low += above + slope * p_at
    k = load_rows(key, j[:, None], d[None, :], k_n, k_d, N, D, PAD_D or TAIL)
    v = load_rows(value, j[:, None], e[None, :], v_n, v_d, N, DV, PAD_DV or TAIL)
    _, ds, _ = _scores_gradient(
        q, do, k, v, along[None, :], p_at[:, None], first, count, low[:, None], above[:, None], r[:, None], i[:, None],
        j[None, :], edges, slopes, lines, bias, mask, bias_m, bias_n, mask_m, mask_n, M, N, scale,
        STEPS, DENSE, MASKED, TAIL, ROW_TAIL, NATURAL, 0, KIND,
    )  # fmt: skip
    if STEPS > 0:
        moved += part_sums(ds, x[None, :], p_at[:, None], first, count, edges, slopes, sums, apart, table, STEPS, KIND)
    return weighted_sum(ds, k, dq, PARTS), moved


@triton.jit
def _keys_with_tile(
    dk, dv, moved, k, v, tile, first, count, line, x, j, d, e, query, cotangent, rests, places, edges, slopes, lines,
    bias, mask, q_m, q_d, bias_m, bias_n, mask_m, mask_n, M, N, D, DV, scale, ROWS: tl.constexpr,
    STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr, ROW_TAIL: tl.constexpr,
    NATURAL: tl.constexpr, PARTS: tl.constexpr, WEIGHT_PARTS: tl.constexpr, SHIFT: tl.constexpr,
    PAD_D: tl.constexpr, PAD_DV: tl.constexpr, MOVE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, values and their positions with one more tile of queries."""
    i = tile * ROWS + tl.arange(0, ROWS)
    p_at = x
    if STEPS > 0:
        p_at, near = load_places(places, tile, ROWS)
    q = load_rows(query, i[:, None], d[None, :], q_m, q_d, M, D, PAD_D or ROW_TAIL)
    step = DV if PAD_DV else e.shape[0]
    do = load_rows(cotangent, i[:, None], e[None, :], step, 1, M, DV, PAD_DV or ROW_TAIL)
    low, r = load_pairs(rests, i, M, ROW_TAIL)
    above = low
    if KIND != FOLDED:
        low, above = load_pairs(rests + 2, i, M, ROW_TAIL)
    if ROW_TAIL:
        low = tl.where(i < M, low, float("inf"))
    along = x
    if KIND == FOLDED:
        slope, bias_at_0, origin = line
        along = slope * (x - origin) + bias_at_0
        low += slope * near
    p, ds, slopes_there = _scores_gradient(
        k, v, q, do, along[:, None], p_at[None, :], first, count, low[None, :], above[None, :], r[None, :], i[None, :],
        j[:, None], edges, slopes, lines, bias, mask, bias_m, bias_n, mask_m, mask_n, M, N, scale,
        STEPS, DENSE, MASKED, TAIL, ROW_TAIL, NATURAL, SHIFT, KIND,
    )  # fmt: skip
    dv = weighted_sum(p, do, dv, WEIGHT_PARTS)
    if MOVE:
        moved += tl.sum(ds * slopes_there, 1)
    return weighted_sum(ds, q, dk, PARTS), dv, moved


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    query, key, value, output, cotangent, lse_cotangent, base, rests,
    positions, places, order, ends, edges, slopes, lines, bias, mask,
    d_query, d_positions, sums,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    bias_b, bias_h, bias_m, bias_n, mask_b, mask_h, mask_m, mask_n, positions_b, places_b, order_b, ends_b,
    H, GROUP, M, N, D, DV, table, scale, factor,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr, ROW_TAIL: tl.constexpr,
    NATURAL: tl.constexpr, PARTS: tl.constexpr, PAD_D: tl.constexpr, PAD_DV: tl.constexpr,
    K_ROW: tl.constexpr, V_ROW: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries and of its positions, and its part of the sums over cells.

    It writes ``rests``: the lse and r, then the two numbers of ``base``.

    ``sums`` are two tables with rows of ``table`` numbers, ``TABLES`` of each program or one; they begin as zeros.
    """
    k_n, v_n = row_step(k_n, K_ROW), row_step(v_n, V_ROW)
    blocks = tl.cdiv(M, ROWS)
    program = tl.program_id(0)
    block, bh = program % blocks, program // blocks
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    i, d, e = block * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    key += b * k_b + (h // GROUP) * k_h
    value += b * v_b + (h // GROUP) * v_h
    bias += b * bias_b + h * bias_h
    mask += b * mask_b + h * mask_h
    q = load_rows(query + b * q_b + h * q_h, i[:, None], d[None, :], q_m, q_d, M, D, PAD_D or ROW_TAIL)
    row = bh.to(tl.int64) * M
    do = load_rows(cotangent + row * DV, i[:, None], e[None, :], DV, 1, M, DV, PAD_DV or ROW_TAIL)
    o = load_rows(output + row * DV, i[:, None], e[None, :], DV, 1, M, DV, PAD_DV or ROW_TAIL)
    r = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1) - tl.load(lse_cotangent + row + i, mask=i < M, other=0.0)
    low = tl.load(base + (row + i) * 2, mask=i < M, other=float("inf"))
    above = tl.load(base + (row + i) * 2 + 1, mask=i < M, other=0.0)
    rests += (row + i) * 4
    tl.store(rests, low + above, mask=i < M)
    tl.store(rests + 1, r, mask=i < M)
    tl.store(rests + 2, low, mask=i < M)
    tl.store(rests + 3, above, mask=i < M)
    tiles = tl.cdiv(N, COLUMNS)
    p_at = tl.zeros((ROWS,), tl.float32)
    dq = tl.zeros((ROWS, BLOCK_D), tl.float32)
    moved = tl.zeros((ROWS, 8), tl.float32)
    if STEPS == 0:
        for at in tl.range(0, tiles):
            dq, moved = _queries_with_tile(
                dq, moved, q, do, low, above, r, at, 0, 0, (0.0, 0.0, 0.0), p_at, i, d, e, key, value, places,
                edges, slopes, lines, bias, mask, sums, 0, 0, k_n, k_d, v_n, v_d, bias_m, bias_n, mask_m, mask_n,
                M, N, D, DV,
                scale, COLUMNS, STEPS, DENSE, MASKED, TAIL, ROW_TAIL, NATURAL, PARTS, PAD_D, PAD_DV, PLAIN,
            )  # fmt: skip
    else:
        zeros = row_zeros(q, COLUMNS)
        p_at = load_positions(positions + b * positions_b, i, M, ROW_TAIL) + zeros
        low += zeros
        above += zeros
        r += zeros
        places += b * places_b
        order += b * order_b + block * tiles
        ends += b * ends_b + block * KINDS
        slopes += h * table
        lines += h * table
        copies = TABLES if ROWS >= 16 * TABLES else 1
        sums += program.to(tl.int64) * copies * table
        apart = tl.num_programs(0).to(tl.int64) * copies * table
        end = 0
        for kind in tl.static_range(KINDS):
            start, end = end, tl.load(ends + kind)
            ahead = tl.load(order + tl.minimum(start, tiles - 1))
            for at in tl.range(start, end, num_stages=None if kind < SEARCH else 1):
                tile, first, count = parts_of(ahead)
                line = line_of_tile(ahead, slopes, lines, places, COLUMNS)
                ahead = tl.load(order + tl.minimum(at + 1, tiles - 1))
                dq, moved = _queries_with_tile(
                    dq, moved, q, do, low, above, r, tile, first, count, line, p_at, i, d, e, key, value, places,
                    edges, slopes, lines, bias, mask, sums, apart, table, k_n, k_d, v_n, v_d, bias_m, bias_n,
                    mask_m, mask_n,
                    M, N, D, DV, scale, COLUMNS, STEPS, DENSE, MASKED, TAIL, ROW_TAIL, NATURAL, PARTS, PAD_D, PAD_DV,
                    kind,
                )  # fmt: skip
        tl.store(d_positions + row + i, tl.sum(moved, 1) * -LN2, mask=i < M)
    at = d_query + (row + i)[:, None] * D + d[None, :]
    tl.store(at, (dq * factor).to(d_query.dtype.element_ty), mask=(i[:, None] < M) & (d[None, :] < D))


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    query, key, value, cotangent, rests,
    positions, places, order, ends, edges, slopes, lines, bias, mask,
    d_key, d_value, d_positions,
    q_b, q_h, q_m, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    bias_b, bias_h, bias_m, bias_n, mask_b, mask_h, mask_m, mask_n, positions_b, places_b, order_b, ends_b,
    H, GROUP, M, N, D, DV, table, scale, factor,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STEPS: tl.constexpr, DENSE: tl.constexpr, MASKED: tl.constexpr, TAIL: tl.constexpr, ROW_TAIL: tl.constexpr,
    NATURAL: tl.constexpr, PARTS: tl.constexpr, WEIGHT_PARTS: tl.constexpr, SHIFT: tl.constexpr,
    PAD_D: tl.constexpr, PAD_DV: tl.constexpr, MOVE: tl.constexpr,
    Q_ROW: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values for one query head, and of their positions where these ``MOVE``.

    Tiles are (keys, queries) here, ``COLUMNS`` keys and ``ROWS`` queries.
    """
    q_m = row_step(q_m, Q_ROW)
    blocks = tl.cdiv(N, COLUMNS)
    block, bh = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b, h = (bh // H).to(tl.int64), (bh % H).to(tl.int64)
    j, d, e = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    query += b * q_b + h * q_h
    bias += b * bias_b + h * bias_h
    mask += b * mask_b + h * mask_h
    row = bh.to(tl.int64) * M
    k = load_rows(key + b * k_b + (h // GROUP) * k_h, j[:, None], d[None, :], k_n, k_d, N, D, PAD_D or TAIL)
    v = load_rows(value + b * v_b + (h // GROUP) * v_h, j[:, None], e[None, :], v_n, v_d, N, DV, PAD_DV or TAIL)
    cotangent += row * DV
    rests += row * 4
    tiles = tl.cdiv(M, ROWS)
    x = tl.zeros((COLUMNS,), tl.float32)
    dk = tl.zeros((COLUMNS, BLOCK_D), tl.float32)
    dv = tl.zeros((COLUMNS, BLOCK_DV), tl.float32)
    moved = tl.zeros((COLUMNS,), tl.float32)
    if STEPS == 0:
        for at in tl.range(0, tiles):
            dk, dv, moved = _keys_with_tile(
                dk, dv, moved, k, v, at, 0, 0, (0.0, 0.0, 0.0), x, j, d, e, query, cotangent, rests, places, edges,
                slopes, lines, bias, mask, q_m, q_d, bias_m, bias_n, mask_m, mask_n, M, N, D, DV, scale, ROWS, STEPS,
                DENSE, MASKED, TAIL, ROW_TAIL, NATURAL, PARTS, WEIGHT_PARTS, SHIFT, PAD_D, PAD_DV, MOVE,
                PLAIN,
            )  # fmt: skip
    else:
        x = load_positions(positions + b * positions_b, j, N, TAIL) + row_zeros(k, ROWS)
        places += b * places_b
        order += b * order_b + block * tiles
        ends += b * ends_b + block * KINDS
        slopes += h * table
        lines += h * table
        end = 0
        for kind in tl.static_range(KINDS):
            start, end = end, tl.load(ends + kind)
            ahead = tl.load(order + tl.minimum(start, tiles - 1))
            for at in tl.range(start, end, num_stages=None if kind < SEARCH else 1):
                tile, first, count = parts_of(ahead)
                line = line_of_tile(ahead, slopes, lines, places, ROWS)
                ahead = tl.load(order + tl.minimum(at + 1, tiles - 1))
                dk, dv, moved = _keys_with_tile(
                    dk, dv, moved, k, v, tile, first, count, line, x, j, d, e, query, cotangent, rests, places, edges,
                    slopes, lines, bias, mask, q_m, q_d, bias_m, bias_n, mask_m, mask_n, M, N,
                    D, DV, scale, ROWS, STEPS, DENSE, MASKED, TAIL, ROW_TAIL, NATURAL, PARTS, WEIGHT_PARTS, SHIFT,
                    PAD_D, PAD_DV, MOVE, kind,
                )  # fmt: skip
    if MOVE:
        tl.store(d_positions + bh.to(tl.int64) * N + j, moved * LN2, mask=j < N)
    if SHIFT > 0:
        dv *= 2.0**-SHIFT
    row = (bh.to(tl.int64) * N + j)[:, None]
    at = d_key + row * D + d[None, :]
    tl.store(at, (dk * factor).to(d_key.dtype.element_ty), mask=(j[:, None] < N) & (d[None, :] < D))
    at = d_value + row * DV + e[None, :]
    tl.store(at, dv.to(d_value.dtype.element_ty), mask=(j[:, None] < N) & (e[None, :] < DV))
