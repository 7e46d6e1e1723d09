"""The oracle: indirect attention and its gradient in ball arithmetic, with nothing of ia_core or any framework.

Every input number is taken exactly as it is; every result is a ball (python-flint's ``arb``) that encloses the
true value. A result is handed out as two float64 whose sum is the ball's midpoint, correct to about 2^-100, so that
errors of float64 implementations can be measured as well.

It is written for small cases, row by row from the definition, and shares no code with what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flint import arb, arb_mat, ctx

__all__ = ["Exact", "Forward", "Gradient", "ball_array", "dense_bias", "forward", "gradient"]

PRECISION = 160  # bits: far beyond float64's 53, so that cancellation costs nothing that would show


class Exact(NamedTuple):
    """An array of true values, as the unevaluated sum of two float64 arrays, each within ``radius`` of the truth."""

    high: np.ndarray
    low: np.ndarray
    radius: Any = 0.0

    def error_of(self, got: np.ndarray) -> np.ndarray:
        """|got - truth|, without the rounding that a difference of float64 numbers would have."""
        with np.errstate(invalid="ignore"):
            error = np.abs((got - self.high) - self.low)
        return np.where((got == self.high) & np.isinf(self.high), 0.0, error)


class Forward(NamedTuple):
    """True scores, weights, output and lse; -inf scores where nothing may be attended to."""

    scores: np.ndarray
    weights: np.ndarray
    output: Exact
    lse: Exact


class Gradient(NamedTuple):
    """True gradients of <cotangent, output>; ``scores`` is that of the scores, before any summing."""

    query: Exact
    key: Exact
    value: Exact
    bias: Exact | None
    scores: np.ndarray


def forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: Any = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
) -> Forward:
    """The true output; ``bias`` is an array or a position bias (any object with f and positions)."""
    ctx.prec = PRECISION
    rows = _Rows(query, key, value, bias, mask, scale)
    output = np.zeros(rows.shape[:-1] + value.shape[-1:], dtype=object)
    lse = np.full(rows.shape[:-1], arb("-inf"), dtype=object)
    weights = np.zeros(rows.shape, dtype=object)
    scores = np.full(rows.shape, -math.inf)
    for at, row in rows:
        weights[at][row.where] = row.weights
        scores[at][row.where] = _floats(row.scores)
        lse[at] = row.lse
        output[at] = _combine(row.weights, row.values, value.shape[-1])
    return Forward(scores, _floats(weights), _exact(output), _exact(lse))


def gradient(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    cotangent: np.ndarray,
    bias: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
    lse_cotangent: np.ndarray | None = None,
) -> Gradient:
    """The true gradients of <cotangent, output> and, if it is given, <lse_cotangent, lse>.

    That of the bias is summed back to the shape of the bias as given.
    """
    ctx.prec = PRECISION
    rows = _Rows(query, key, value, bias, mask, scale)
    dq, dk, dv = (np.full(a.shape, arb(0), dtype=object) for a in (query, key, value))
    ds = np.full(rows.shape, arb(0), dtype=object)
    for at, row in rows:
        *batch, h, _ = at
        kv = (*batch, h // rows.group)
        do = _balls(cotangent[at])
        to_weights = [_dot(do, v) for v in row.values]
        mean = _dot(row.weights, to_weights)
        if lse_cotangent is not None:  # d lse / d s_j is the weight of j
            mean = mean - _ball(lse_cotangent[at])
        for j, a, t, k in zip(row.where, row.weights, to_weights, row.keys, strict=True):
            slope = a * (t - mean)
            ds[at][j] = slope
            dq[at] += np.asarray([rows.scale * slope * x for x in k], dtype=object)
            dk[kv][j] += np.asarray([rows.scale * slope * x for x in row.query], dtype=object)
            dv[kv][j] += np.asarray([a * x for x in do], dtype=object)
    db = None if bias is None else _exact(_sum_to(ds, tuple(bias.shape)))
    return Gradient(_exact(dq), _exact(dk), _exact(dv), db, _floats(ds))


class _Row(NamedTuple):
    where: np.ndarray  # the positions j that this row may attend to
    query: list[arb]
    keys: list[list[arb]]
    values: list[list[arb]]
    scores: list[arb]
    weights: list[arb]
    lse: arb


class _Rows:
    """The rows of a call that have something to attend to, one at a time."""

    def __init__(self, query: Any, key: Any, value: Any, bias: Any, mask: Any, scale: float | None) -> None:
        *batch, H, M, D = query.shape
        N = key.shape[-2]
        self.shape = (*batch, H, M, N)
        self.group = H // key.shape[-3] if key.shape[-3] else 1
        self.arrays = query, key, value
        # The default is the real number 1 / sqrt(D); a scale that is given is the float that was given.
        self.scale = 1 / arb(D).sqrt() if scale is None else arb(float(scale))
        self.mask = np.ones(self.shape, bool) if mask is None else np.broadcast_to(mask, self.shape)
        self.bias = None if bias is None else np.broadcast_to(dense_bias(bias), self.shape)

    def __iter__(self) -> Any:
        query, key, value = self.arrays
        for at in np.ndindex(self.shape[:-1]):
            *batch, h, _ = at
            kv = (*batch, h // self.group)
            bias = None if self.bias is None else self.bias[at]
            allowed = [j for j in np.flatnonzero(self.mask[at]) if bias is None or not _is_minus_inf(bias[j])]
            if not allowed:
                continue
            where = np.asarray(allowed)
            q, keys = _balls(query[at]), [_balls(key[kv][j]) for j in where]
            scores = [self.scale * _dot(q, k) for k in keys]
            if bias is not None:
                scores = [s + _ball(bias[j]) for s, j in zip(scores, where, strict=True)]
            exps = [s.exp() for s in scores]  # balls have no overflow: no maximum needs to be taken away
            total = sum(exps, arb(0))
            values = [_balls(value[kv][j]) for j in where]
            yield at, _Row(where, q, keys, values, scores, [e / total for e in exps], total.log())


def dense_bias(bias: Any) -> np.ndarray:
    """The bias as an array of floats (as given) or of balls (evaluated from a position bias)."""
    if isinstance(bias, np.ndarray):
        return bias
    ctx.prec = PRECISION
    f, p, v = bias
    kind = type(f).__name__
    if kind == "BoxMLP":
        return _box_bias(f, np.asarray(p), v)
    p, v = np.asarray(p), np.asarray(v)
    heads = {"OffsetMLP": 3, "OffsetTable": 0, "LinearOffset": 0}[kind]
    H = f[heads].shape[0]
    batch = np.broadcast_shapes(p.shape[:-1], v.shape[:-1])
    p, v = np.broadcast_to(p, (*batch, p.shape[-1])), np.broadcast_to(v, (*batch, v.shape[-1]))
    result = np.full((*batch, H, p.shape[-1], v.shape[-1]), arb(0), dtype=object)
    one: Any = {"OffsetMLP": _mlp, "OffsetTable": _table, "LinearOffset": _linear}[kind]
    for at in np.ndindex(batch):
        for i, j in np.ndindex(p.shape[-1], v.shape[-1]):
            result[(*at, slice(None), i, j)] = one(f, _ball(v[at][j]) - _ball(p[at][i]))
    return result


def _mlp(f: Any, *inputs: arb) -> list[arb]:
    w1, b1, w2, b2 = (np.asarray(part) for part in f)
    w1 = w1.reshape(len(inputs), -1)
    hidden = [
        sum((t * _ball(w1[k, c]) for k, t in enumerate(inputs)), _ball(b1[c])).max(arb(0)) for c in range(w1.shape[1])
    ]
    return [_dot(hidden, _balls(w2[:, h])) + _ball(b2[h]) for h in range(w2.shape[1])]


def _table(f: Any, t: arb) -> list[arb]:
    values = np.asarray(f.values)
    reach = values.shape[-1] // 2
    place = min(max(float(t.mid()), -reach), reach) + reach
    left = math.floor(place)
    right = min(left + 1, 2 * reach)
    part = min(max(t + reach, arb(0)), arb(2 * reach)) - left
    return [(1 - part) * _ball(row[left]) + part * _ball(row[right]) for row in values]


def _linear(f: Any, t: arb) -> list[arb]:
    return [-_ball(slope) * abs(t) for slope in np.asarray(f.slopes)]


def _box_bias(f: Any, boxes: np.ndarray, grid: Any) -> np.ndarray:
    xs, ys = np.asarray(grid.x), np.asarray(grid.y)
    H = f.x.w2.shape[-1]
    result = np.full((*boxes.shape[:-2], H, boxes.shape[-2], ys.size * xs.size), arb(0), dtype=object)
    for at in np.ndindex(boxes.shape[:-1]):
        x0, y0, x1, y1 = _balls(boxes[at])
        from_x = [_mlp(f.x, x0 - _ball(c), x1 - _ball(c)) for c in xs]
        from_y = [_mlp(f.y, y0 - _ball(r), y1 - _ball(r)) for r in ys]
        *batch, i = at
        for (r, by), (c, bx) in ((y, x) for y in enumerate(from_y) for x in enumerate(from_x)):
            result[(*batch, slice(None), i, r * xs.size + c)] = [a + b for a, b in zip(bx, by, strict=True)]
    return result


def ball_array(numbers: Any) -> np.ndarray:
    """Floats as balls, exactly, for further arithmetic at the oracle's precision."""
    ctx.prec = PRECISION
    numbers = np.asarray(numbers)
    result = np.empty(numbers.size, dtype=object)
    result[:] = _balls(numbers.ravel())
    return result.reshape(numbers.shape)


def _ball(x: Any) -> arb:
    return x if isinstance(x, arb) else arb(float(x))


def _balls(xs: Any) -> list[arb]:
    return [_ball(x) for x in xs]


def _is_minus_inf(x: Any) -> bool:
    return not isinstance(x, arb) and float(x) == -math.inf


def _dot(xs: Sequence[arb], ys: Sequence[arb]) -> arb:
    return sum((x * y for x, y in zip(xs, ys, strict=True)), arb(0))


def _combine(weights: list[arb], values: list[list[arb]], width: int) -> np.ndarray:
    if not width:
        return np.zeros(0, dtype=object)
    product = arb_mat(1, len(weights), weights) * arb_mat(len(weights), width, [x for v in values for x in v])
    return np.asarray(product.entries(), dtype=object)


def _sum_to(dense: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    result = np.full(shape, arb(0), dtype=object)
    padded = (1,) * (dense.ndim - len(shape)) + tuple(shape)
    view = result.reshape(padded)
    for at in np.ndindex(dense.shape):
        view[tuple(0 if size == 1 else i for i, size in zip(at, padded, strict=True))] += dense[at]
    return result


def _floats(balls: Any) -> np.ndarray:
    balls = np.asarray(balls, dtype=object)
    return np.asarray([float(_ball(x)) for x in balls.ravel()], dtype=np.float64).reshape(balls.shape)


def _exact(balls: np.ndarray) -> Exact:
    high = _floats(balls)
    rest, radius = np.zeros(high.size), np.zeros(high.size)
    for n, (x, h) in enumerate(zip(balls.ravel(), high.ravel(), strict=True)):
        if math.isfinite(h):
            rest[n], radius[n] = float(_ball(x) - arb(h)), float(_ball(x).rad())
    return Exact(high, rest.reshape(high.shape), radius.reshape(high.shape))
