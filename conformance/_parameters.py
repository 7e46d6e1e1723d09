"""True gradients of a position bias: of its parameters and of its query positions, and how far they may be off.

With ds the gradient of the scores, summed to the shape of the bias, and b_hij = f_h(t_ij), t_ij = v_j - p_i:

    OffsetMLP     z_k = t w1_k + b1_k,  r_k = relu(z_k),  G_k = [z_k > 0] sum_h ds_h w2_kh
                  dw1_k = sum t G_k,  db1_k = sum G_k,  dw2_kh = sum r_k ds_h,  db2_h = sum ds_h,  dt = sum_k G_k w1_k
    OffsetTable   weights 1 - part and part at the two entries beside t;  dt = sum_h ds_h (right - left), 0 beyond
    LinearOffset  dslope_h = -sum |t| ds_h,  dt = -sum_h slope_h sign(t) ds_h
    positions     dp_i = -sum_j dt_ij

each a sum over i, j and what the bias was broadcast along. The truth is computed in balls from the true ds.

The bound: every gradient is linear in ds, so an error dds of it counts with the size of its coefficient. Each of the
other roundings is relative to the product of sizes |ds| |coefficient|, with |t| |w1| + |b1| in the place of r where a
sum may be split at that plus sign, as an evaluation by slopes and intercepts does. A sum of n terms adds c_n u.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._case import Case
from ._oracle import Exact, Gradient, _ball, _exact, ball_array
from ._tolerance import Rounding, _c, _sum_to

__all__ = ["near_a_kink", "parameter_bound", "parameter_truth"]

# Derivatives jump at kinks: a case with an offset nearer than this many roundings is no question with one answer.
MARGIN = 16


def near_a_kink(case: Case, r: Rounding) -> bool:
    """Whether rounding could move an offset over a kink of the bias function."""
    f, t = case.bias.f, _offsets(case, np.float64)
    kind = type(f).__name__
    if kind == "OffsetMLP":
        w1, b1 = (np.asarray(part, np.float64) for part in f[:2])
        sizes = np.abs(t)[..., None] * np.abs(w1) + np.abs(b1)
        return bool(np.any(np.abs(t[..., None] * w1 + b1) <= MARGIN * r.u * sizes))
    if np.issubdtype(case.bias.query_positions.dtype, np.integer):
        return False  # every library has such offsets exactly, and the parameters' gradients do not jump
    kinks = np.zeros(t.shape) if kind == "LinearOffset" else np.round(t)
    reach = 0 if kind == "LinearOffset" else f.values.shape[-1]
    return bool(np.any(np.abs(t - kinks) <= MARGIN * r.u * (np.abs(t) + reach + 1)))


def parameter_truth(case: Case, gradient: Gradient) -> dict[str, Exact]:
    """The true gradients by path, as ``f.w1``; ``gradient.bias`` is that of the dense bias."""
    assert gradient.bias is not None
    ds = ball_array(gradient.bias.high) + ball_array(gradient.bias.low)  # (..., H, M, N)
    t = _offsets(case, object)  # (..., M, N)
    kind = type(case.bias.f).__name__
    found, dt = {"OffsetMLP": _mlp, "OffsetTable": _table, "LinearOffset": _linear}[kind](case.bias.f, t, ds)
    p = np.asarray(case.bias.query_positions)
    found["query_positions"] = -_summed(dt.sum(axis=-1), p.shape)
    return {name: _exact(np.asarray(array, dtype=object)) for name, array in found.items()}


def parameter_bound(case: Case, gradient: Gradient, dds: np.ndarray, r: Rounding) -> dict[str, np.ndarray]:
    """The bounds by path; ``dds`` is the bound of the dense bias's gradient."""
    assert gradient.bias is not None
    ds, t = np.abs(gradient.bias.high), _offsets(case, np.float64)
    kind = type(case.bias.f).__name__
    sizes = {"OffsetMLP": _mlp_sizes, "OffsetTable": _table_sizes, "LinearOffset": _linear_sizes}[kind]
    carried, rounded = sizes(case.bias.f, t, dds, ds)
    p = np.asarray(case.bias.query_positions)
    for found in (carried, rounded):
        found["query_positions"] = _sum_to(found.pop("t").sum(axis=-1), p.shape)
    hidden = case.bias.f.w1.size if kind == "OffsetMLP" else 1
    roundings = _c(ds.size) + _c(ds.shape[-3]) + _c(hidden) + 8
    truth = parameter_truth(case, gradient)
    return {
        name: carried[name] + roundings * r.u * rounded[name] + r.u * np.abs(truth[name].high) + ds.size * r.flush
        for name in carried
    }


def _mlp(f: Any, t: np.ndarray, ds: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    w1, b1, w2, _ = (ball_array(part) for part in f)
    z = t[..., None] * w1 + b1  # (..., M, N, hidden)
    active = np.vectorize(lambda ball: bool(ball > 0), otypes=[bool])(z)
    out = np.moveaxis(ds, -3, -1)  # (..., M, N, H)
    G = np.matmul(out, w2.T)
    r = z.copy()
    G[~active] = r[~active] = _ball(0)
    rows = tuple(range(t.ndim))
    parts = {
        "f.w1": np.sum(t[..., None] * G, axis=rows),
        "f.b1": np.sum(G, axis=rows),
        "f.w2": np.sum(r[..., :, None] * out[..., None, :], axis=rows),
        "f.b2": np.sum(out, axis=rows),
    }
    return parts, np.sum(G * w1, axis=-1)


def _mlp_sizes(f: Any, t: np.ndarray, dds: np.ndarray, ds: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    w1, b1, w2, _ = (np.asarray(part, np.float64) for part in f)
    z = t[..., None] * w1 + b1
    active = z > 0
    rows = tuple(range(t.ndim))

    def of(error: np.ndarray, z_size: np.ndarray, w1_to_w2: np.ndarray) -> dict[str, Any]:
        out = np.moveaxis(error, -3, -1)
        G = np.where(active, np.matmul(out, np.abs(w2).T), 0.0)
        return {
            "f.w1": np.sum(np.abs(t)[..., None] * G, axis=rows),
            "f.b1": np.sum(G, axis=rows),
            "f.w2": np.sum(np.where(active, z_size, 0.0)[..., :, None] * out[..., None, :], axis=rows),
            "f.b2": np.sum(out, axis=rows),
            "t": np.sum(out * w1_to_w2, axis=-1),
        }

    # An error of ds_h meets the slope of f_h; a rounding within that slope's sum meets the sum of sizes.
    slope = np.abs(np.matmul(np.where(active, w1, 0.0), w2))  # (..., M, N, H)
    slope_size = np.matmul(np.where(active, np.abs(w1), 0.0), np.abs(w2))
    z_size = np.abs(t)[..., None] * np.abs(w1) + np.abs(b1)
    return of(dds, np.abs(z), slope), of(ds, z_size, slope_size)


def _table(f: Any, t: np.ndarray, ds: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    values = ball_array(f.values)
    columns = values.shape[-1]
    dv = np.full(values.shape, _ball(0), dtype=object)
    dt = np.full(t.shape, _ball(0), dtype=object)
    for at in np.ndindex(t.shape):
        *batch, i, j = at
        offset: Any = t[at]
        left, inside = _cell(float(offset.mid()), columns)
        right = min(left + 1, columns - 1)
        part = min(max(offset + columns // 2, _ball(0)), _ball(columns - 1)) - left
        row = ds[(*batch, slice(None), i, j)]
        dv[:, left] += (1 - part) * row
        dv[:, right] += part * row
        dt[at] = np.sum(row * (values[:, right] - values[:, left])) if inside else _ball(0)
    return {"f.values": dv}, dt


def _table_sizes(f: Any, t: np.ndarray, dds: np.ndarray, ds: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    values = np.asarray(f.values, np.float64)
    columns = values.shape[-1]
    carried, rounded = ({"f.values": np.zeros(values.shape), "t": np.zeros(t.shape)} for _ in range(2))
    for at in np.ndindex(t.shape):
        *batch, i, j = at
        left, inside = _cell(float(t[at]), columns)
        right = min(left + 1, columns - 1)
        part = min(max(t[at] + columns // 2, 0.0), columns - 1.0) - left
        here = (*batch, slice(None), i, j)
        carried["f.values"][:, left] += (1 - part) * dds[here]
        carried["f.values"][:, right] += part * dds[here]
        # The part is off by the roundings of t and of t + R; the offset itself may be rounded as well.
        wide = 1.0 + (abs(t[at]) + columns if part else 0.0)
        rounded["f.values"][:, left] += wide * ds[here]
        rounded["f.values"][:, right] += wide * ds[here] if part else 0.0
        if inside:
            carried["t"][at] = np.sum(np.abs(values[:, right] - values[:, left]) * dds[here])
            rounded["t"][at] = np.sum((np.abs(values[:, right]) + np.abs(values[:, left])) * ds[here])
    return carried, rounded


def _cell(t: float, columns: int) -> tuple[int, bool]:
    """The entry on the left of an offset, and whether the table slopes there."""
    place = t + columns // 2
    return int(np.floor(min(max(place, 0), columns - 1))), 0 < place < columns - 1


def _linear(f: Any, t: np.ndarray, ds: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    slopes = ball_array(f.slopes)[:, None, None]
    sign = np.vectorize(lambda ball: int(ball > 0) - int(ball < 0), otypes=[object])(t)
    every = (t * sign)[..., None, :, :] * ds
    axes = tuple(axis for axis in range(ds.ndim) if axis != ds.ndim - 3)
    return {"f.slopes": -np.sum(every, axis=axes)}, -np.sum(slopes * ds, axis=-3) * sign


def _linear_sizes(f: Any, t: np.ndarray, dds: np.ndarray, ds: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    slopes = np.abs(np.asarray(f.slopes, np.float64))[:, None, None]
    axes = tuple(axis for axis in range(ds.ndim) if axis != ds.ndim - 3)

    def of(error: np.ndarray) -> dict[str, Any]:
        return {
            "f.slopes": np.sum(np.abs(t)[..., None, :, :] * error, axis=axes),
            "t": np.sum(slopes * error, axis=-3),
        }

    return of(dds), of(ds)


def _offsets(case: Case, kind: Any) -> np.ndarray:
    p, v = (np.asarray(array) for array in (case.bias.query_positions, case.bias.value_positions))
    p, v = (ball_array(array) if kind is object else array.astype(np.float64) for array in (p, v))
    return v[..., None, :] - p[..., :, None]


def _summed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Summed over the leading axes that a smaller shape has not."""
    return array.sum(axis=tuple(range(array.ndim - len(shape)))) if array.ndim > len(shape) else array
