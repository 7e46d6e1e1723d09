"""How far a correct implementation may be from the truth: a bound per element, derived from the data.

Rounding analysis of softmax attention in a working precision with unit roundoff u. A score that is off by at most
e_ij, as exp(s_ij) is by a factor of exp(e_ij), moves the lse by at most L_i and the output as follows:

    |error of o_i|  <=  exp(L_i) sum_j g_ij |v_j - o_i|  +  (2 c_N + 8) u sum_j a_ij |v_j|  +  u_out |o_i|
    g_ij = a_ij (exp(e_ij) - 1),  L_i = log(1 + sum_j g_ij)
    e_ij = u ((c_D + 3) scale sum_k |q_ik| |k_jk| + 4 |s_ij| + 2 |b_ij| + 2 |s_ij - lse_i| + 8) + |error of b_ij|

because sum_j a_ij (v_j - o_i) = 0, so that the weights a_ij exp(d_ij) / sum_l a_il exp(d_il) with |d_ij| <= e_ij move
the output by sum_j a_ij (exp(d_ij) - 1) (v_j - o_i) over a sum that is at least exp(-L_i). To first order this is
sum_j a_ij |v_j - o_i| e_ij. Whatever the scores, an average of values is no farther away than the farthest value.

c_n = min(n, 6 sqrt(n)): to first order no dot product of length n errs by more than n u (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1), and by more than 6 sqrt(n) u only with probability below 1e-7, if
rounding errors are independent with mean 0 (Hoeffding: 2 exp(-36 / 2); the model is that of Higham and Mary 2019).
The small integers count the roundings that implementations really have: the scale (once, or its root on each side),
the bias, a change to base 2, the subtraction of the maximum, an exponential good to 4 ulp, the division, and the
rescaling of running sums.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ia_core import PositionBias

from ._case import Case
from ._oracle import Forward, Gradient

__all__ = [
    "ARITHMETICS",
    "ForwardBound",
    "Rounding",
    "average_bound",
    "forward_bound",
    "gradient_bound",
    "rounding_of",
    "unit_roundoff",
]

_UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}

# What an implementation may declare instead of the arithmetic of docs/spec.md, "standard".
ARITHMETICS = ("standard", "weights", "scores", "own", "float32")


class ForwardBound(NamedTuple):
    """Largest correct errors of the output and of the lse, elementwise."""

    output: np.ndarray
    lse: np.ndarray


class Rounding(NamedTuple):
    """Unit roundoffs of the working precision, of rounded scores and weights (0: not rounded), and of the output.

    ``flush``, ``flush_work`` and ``flush_out`` are the smallest normal numbers (the step, in float16) of exponentials,
    of the working precision, which is that of products, and of the output.
    """

    u: float
    scores: float
    weights: float
    out: float
    flush: float
    flush_work: float
    flush_out: float


def rounding_of(dtype: str, arithmetic: str = "standard") -> Rounding:
    """What a dtype and an arithmetic, one of ARITHMETICS, allow.

    Examples
    --------
    >>> rounding_of("bfloat16").u == 2.0**-24, rounding_of("bfloat16", "weights").weights == 2.0**-8
    (True, True)
    """
    work = {"own": dtype, "float32": "float32"}.get(arithmetic, _work(dtype))
    own = _UNIT[dtype]
    return Rounding(
        u=_UNIT[work],
        scores=own if arithmetic == "scores" else 0.0,
        weights=own if arithmetic in ("weights", "scores") else 0.0,
        out=max(own, _UNIT[work]) if arithmetic == "float32" else own,
        flush=_SMALLEST[dtype] if arithmetic != "standard" and _UNIT[dtype] > _UNIT["float32"] else _SMALLEST[work],
        flush_work=_SMALLEST[work],
        flush_out=max(_SMALLEST[dtype], _SMALLEST[work]),
    )


def unit_roundoff(dtype: str, *, working: bool = True) -> float:
    """Of the working precision of a dtype (float32 for halves), or of the dtype itself."""
    return _UNIT[_work(dtype) if working else dtype]


def forward_bound(case: Case, truth: Forward, rounding: Rounding | None = None) -> ForwardBound:
    """The bound above for every element of the output and of the lse; by default for the arithmetic of the case."""
    r = rounding or rounding_of(case.dtype, case.arithmetic)
    a, value = truth.weights, _spread_heads(case, case.value)
    o = truth.output.high
    e = score_error(case, truth, r)
    grown, moved_lse = _moved_weights(truth, e)
    N = a.shape[-1]
    distance = np.abs(value[..., None, :, :] - o[..., :, None, :])  # (..., H, M, N, Dv)
    allowed = np.isfinite(truth.scores)[..., None]
    largest = np.max(np.abs(value), axis=-2, initial=0.0)[..., None, :]
    with np.errstate(over="ignore", invalid="ignore"):
        factor = np.exp(moved_lse)[..., None]
        moved = factor * np.sum(grown[..., None] * distance, axis=-2)
        sizes = factor * np.matmul(a + grown, np.abs(value))
    moved = np.fmin(moved, np.max(np.where(allowed, distance, 0.0), axis=-2, initial=0.0))
    # Exponentials below the smallest normal number are flushed to 0: each loses that much of its value. So are products
    # of weights and values, or they are rounded to the step.
    flushed = N * (r.flush * largest + r.flush_work)
    summed = ((2 * _c(N) + 8) * r.u + 2 * r.weights) * np.fmin(sizes, largest)  # of products, and of exponentials
    before = moved + summed + flushed
    rounded = r.out * (np.abs(o) + before) + r.flush_out
    with np.errstate(invalid="ignore"):
        own = np.where(np.isinf(truth.lse.high), 0.0, 2 * (r.u + r.scores) * np.abs(truth.lse.high))
    return ForwardBound(before + rounded, moved_lse + (_c(N) + 8) * r.u + 2 * r.weights + own)


def average_bound(case: Case, truth: Forward, largest: float, got: np.ndarray) -> np.ndarray:
    """The bound of the output for other values than the case's: any that are at most ``largest`` in size.

    ``got`` (..., H, M, Dv) is a computed output, whose size decides how it was rounded; ``case`` and ``truth`` give the
    weights, and may lack leading axes of ``got``.
    """
    r = rounding_of(case.dtype, case.arithmetic)
    grown, moved_lse = _moved_weights(truth, score_error(case, truth, r))
    N = truth.weights.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        # |v_j - o| = (1 - a_j) |v_j - the average of the other values|, which is at most twice the largest.
        moved = 2 * np.exp(moved_lse) * np.sum(grown * (1 - truth.weights), axis=-1)
    before = np.fmin(moved, 2.0) + (2 * _c(N) + 8) * r.u + 2 * r.weights + N * r.flush
    before = (largest * before + N * r.flush_work)[..., None]
    # |o| <= (|got| + before + flush_out) / (1 - out), and out is at most 2^-8.
    return before + 1.01 * r.out * (np.abs(got) + 2 * before + r.flush_out) + r.flush_out


def _moved_weights(truth: Forward, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """g_ij = a_ij (exp(e_ij) - 1) and L_i: how far scores that are off by e_ij move exponentials and the lse."""
    a = truth.weights
    with np.errstate(invalid="ignore"):
        exponent = np.where(np.isfinite(truth.scores), truth.scores - truth.lse.high[..., None], -np.inf)
    # A weight that underflows may come back where its score is off by hundreds.
    grown = np.where(e < 1, a * np.expm1(np.minimum(e, 1.0)), np.exp(np.minimum(exponent + e, 700.0)) - a)
    largest = np.max(e, axis=-1, initial=0.0)
    return grown, np.where(largest < 600, np.log1p(np.sum(grown, axis=-1)), largest)  # no average exceeds the largest


def score_error(case: Case, truth: Forward, r: Rounding) -> np.ndarray:
    """e_ij: how far a correctly computed score, and its exponential, may be off. 0 where nothing is attended to."""
    query, key = np.abs(case.query.astype(np.float64)), np.abs(_spread_heads(case, case.key))
    scale = 1 / math.sqrt(query.shape[-1]) if case.scale is None else case.scale
    s = truth.scores
    allowed = np.isfinite(s)
    with np.errstate(invalid="ignore", over="ignore"):
        products = scale * np.matmul(np.where(np.isfinite(query), query, 0.0), np.swapaxes(key, -1, -2))
        below = np.where(allowed, s - truth.lse.high[..., None], 0.0)
        bias, bias_error = _bias_and_error(case, r.u)
        sizes = np.abs(s) + np.abs(bias) + np.abs(below)
        e = r.u * ((_c(query.shape[-1]) + 3) * products + 4 * np.abs(s) + 2 * np.abs(bias) + 2 * np.abs(below) + 8)
        # Rounded scores: the scaled query, the products, their sum with the bias, the difference from the maximum.
        e = e + r.scores * (2 * products + 2 * sizes)
    return np.where(allowed, e + bias_error, 0.0)


def gradient_bound(
    case: Case,
    truth: Forward,
    grad: Gradient,
    cotangent: np.ndarray,
    rounding: Rounding | None = None,
    lse_cotangent: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The same analysis carried through ds = a (t - r), t = <do, v>, r = sum a t, and the sums that follow.

    A cotangent of the lse is taken away from r; that of a position bias is for its dense form.
    """
    rounding = rounding or rounding_of(case.dtype, case.arithmetic)
    u, u_half, step = rounding.u, rounding.weights, rounding.flush_work
    a, value, key = truth.weights, _spread_heads(case, case.value), _spread_heads(case, case.key)
    query, do = case.query.astype(np.float64), np.abs(cotangent.astype(np.float64))
    scale = 1 / math.sqrt(query.shape[-1]) if case.scale is None else case.scale
    N, M, Dv = a.shape[-1], a.shape[-2], value.shape[-1]
    e = score_error(case, truth, rounding)
    e = e + np.where(np.isfinite(truth.scores), _moved_weights(truth, e)[1][..., None], 0.0)
    da = np.minimum(_moved_weights(truth, e)[0], 1.0)  # no weight exceeds 1
    flushed = np.where(np.isfinite(truth.scores), rounding.flush, 0.0)
    da = da + ((_c(N) + 8) * u + 2 * u_half) * (a + da) + flushed
    near = a + da
    t = np.matmul(cotangent.astype(np.float64), np.swapaxes(value, -1, -2))
    t_abs = np.matmul(do, np.abs(np.swapaxes(value, -1, -2)))
    dt = (_c(Dv) + 1) * u * t_abs + u_half * np.abs(t) + Dv * step
    r = np.sum(a * t, axis=-1, keepdims=True)
    # r is summed either over j or, as <do, o>, over the width: both orders must pass.
    dr = np.sum(da * np.abs(t) + near * dt, axis=-1, keepdims=True)
    dr = dr + ((_c(N) + _c(Dv) + 4) * u + u_half) * np.sum(near * t_abs, axis=-1, keepdims=True)
    dr = dr + step * (N + Dv + N * np.sum(do, axis=-1, keepdims=True))  # products below the step: of r, or of o
    if lse_cotangent is not None:
        r = r - lse_cotangent.astype(np.float64)[..., None]
        dr = dr + u * np.abs(lse_cotangent.astype(np.float64))[..., None]
    dds = da * np.abs(t - r) + near * (dt + dr) + 3 * u * near * (np.abs(t) + np.abs(r))
    ds = np.abs(grad.scores) + dds
    flushed = np.where(np.isfinite(truth.scores), rounding.flush + 2 * step, 0.0)
    dds, da = dds + 2 * u_half * ds + flushed, da + u_half * near  # rounded once more, and again head by head
    group = query.shape[-3] // case.key.shape[-3] if case.key.shape[-3] else 1
    bounds = {
        "query": scale * (np.matmul(dds, np.abs(key)) + (_c(N) + 3) * u * np.matmul(ds, np.abs(key))),
        "key": scale
        * _sum_groups(np.matmul(np.swapaxes(dds + (_c(M * group) + 3) * u * ds, -1, -2), np.abs(query)), group),
        "value": _sum_groups(np.matmul(np.swapaxes(da + (_c(M * group) + 3) * u * near, -1, -2), do), group),
    }
    if case.bias is not None:
        shape = tuple(case.bias.shape)
        count = max(1, ds.size // max(1, math.prod(shape)))
        bounds["bias"] = _sum_to(dds + (_c(count) + 1) * u * ds, shape)
    truths: Any = {"query": grad.query, "key": grad.key, "value": grad.value, "bias": grad.bias}
    for name, products in {"query": N, "key": M * group, "value": M * group}.items():
        bounds[name] = bounds[name] + max(1.0, scale) * products * step
    return {
        name: bound + rounding.out * (np.abs(truths[name].high) + bound) + max(1, group) * rounding.flush_out
        for name, bound in bounds.items()
    }


def _bias_and_error(case: Case, u: float) -> tuple[np.ndarray | float, np.ndarray | float]:
    """|b_ij|, and how far a correctly evaluated position bias may be off."""
    if case.bias is None:
        return 0.0, 0.0
    if not isinstance(case.bias, PositionBias):
        bias = np.abs(case.bias.astype(np.float64))
        return np.where(np.isinf(bias), 0.0, bias), 0.0
    f: Any = case.bias.f
    p, v = case.bias.query_positions, case.bias.value_positions
    wide: Any = case.bias.f.offsets(*_wide((p, v)))
    if type(f).__name__ == "BoxMLP":
        (sx, ex), (sy, ey) = (_mlp_error(u, getattr(f, axis), getattr(wide, axis)) for axis in "xy")
        total, error = (x[..., None, :] + y[..., :, None] for x, y in ((sx, sy), (ex, ey)))
        flat = (*total.shape[:-2], total.shape[-2] * total.shape[-1])
        return total.reshape(flat), (error + u * total).reshape(flat)
    if type(f).__name__ == "OffsetMLP":
        return _mlp_error(u, f, wide[..., None])
    if type(f).__name__ == "LinearOffset":
        size = np.abs(f.slopes.astype(np.float64))[:, None, None] * np.abs(wide)[..., None, :, :]
        return size, 2 * u * size
    values = np.abs(f.values.astype(np.float64))
    size = np.max(values, axis=-1)[:, None, None] * np.ones(wide.shape)[..., None, :, :]
    # The interpolated part is off by the rounding of t + R, times the step between neighbours.
    return size, (4 + 2 * values.shape[-1]) * u * size


def _mlp_error(u: float, f: Any, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and error bounds (..., H, M, L) of a two-layer network at t (..., M, L, K)."""
    w1, b1, w2, b2 = (np.abs(np.asarray(part, dtype=np.float64)) for part in f)
    w1 = w1.reshape(t.shape[-1], -1)
    hidden = np.matmul(np.abs(t), w1) + b1
    size = np.matmul(hidden, w2) + b2
    # Offset, product, sums of the first layer (K + 2 roundings), then the second layer's sum.
    error = (t.shape[-1] + 3 + _c(w2.shape[0]) + 2) * u * size
    return np.moveaxis(size, -1, -3), np.moveaxis(error, -1, -3)


def _wide(tree: Any) -> Any:
    if isinstance(tree, tuple):
        parts = [_wide(leaf) for leaf in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree.astype(np.float64)


def _spread_heads(case: Case, array: np.ndarray) -> np.ndarray:
    """One key head per query head; what is not finite stands where nobody may attend to, and counts as 0."""
    Hk = array.shape[-3]
    finite = np.where(np.isfinite(array), array, 0).astype(np.float64)
    return np.repeat(finite, case.query.shape[-3] // Hk if Hk else 1, axis=-3)


def _sum_groups(array: np.ndarray, group: int) -> np.ndarray:
    *batch, H, rows, columns = array.shape
    return array.reshape(*batch, H // group, group, rows, columns).sum(axis=-3)


def _sum_to(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    padded = (1,) * (array.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, size in enumerate(padded) if size == 1)
    return array.sum(axis=axes, keepdims=True).reshape(shape)


def _c(n: int) -> float:
    return min(n, 6 * math.sqrt(n))


def _work(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16") else dtype
