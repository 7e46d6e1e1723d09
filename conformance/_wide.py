"""The oracle's fast path: the definition in float64, for cases whose own precision is coarser or which are large.

It shares no code with ia_core or with the balls. Its results carry the errors of float64, which the bound of
``_tolerance`` covers as it covers any other float64 implementation: whoever judges by it adds that bound
(tests/test_oracle.py holds it to the balls).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._oracle import Exact, Forward, Gradient, dense_bias

__all__ = ["forward", "gradient"]


def forward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    bias: Any = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
) -> Forward:
    """As ``_oracle.forward``, in float64."""
    q, k, v, group = _operands(query, key, value)
    scores = _scores(q, k, bias, mask, scale)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        top = np.max(scores, axis=-1, initial=-math.inf, keepdims=True)
        shifted = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
        total = np.sum(shifted, axis=-1, keepdims=True)
        weights = np.where(total == 0.0, 0.0, shifted / np.where(total == 0.0, 1.0, total))
        output = _product(weights, np.repeat(v, group, axis=-3))
        lse = (top + np.log(total))[..., 0]
    lse = np.where(total[..., 0] == 0.0, -math.inf, lse)
    return Forward(scores, weights, _plain(output), _plain(lse))


def gradient(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    cotangent: np.ndarray,
    bias: Any = None,
    mask: np.ndarray | None = None,
    scale: float | None = None,
    lse_cotangent: np.ndarray | None = None,
) -> Gradient:
    """As ``_oracle.gradient``, in float64."""
    q, k, v, group = _operands(query, key, value)
    a = forward(query, key, value, bias, mask, scale).weights
    do = cotangent.astype(np.float64)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    spread = np.repeat(v, group, axis=-3)
    # Where nothing is attended to the weight is 0 and t does not matter, whatever stands in the values.
    t = np.where(a == 0.0, 0.0, np.matmul(do, np.swapaxes(spread, -1, -2)))
    mean = np.sum(a * t, axis=-1, keepdims=True)
    ds = a * (t - mean if lse_cotangent is None else t - mean + lse_cotangent.astype(np.float64)[..., None])
    dq = factor * _product(ds, np.repeat(k, group, axis=-3))
    dk = factor * _by_group(_product(np.swapaxes(ds, -1, -2), q), group)
    dv = _by_group(_product(np.swapaxes(a, -1, -2), do), group)
    db = None if bias is None else _plain(_sum_to(ds, tuple(bias.shape)))
    return Gradient(_plain(dq), _plain(dk), _plain(dv), db, ds)


def _operands(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    q, k, v = (array.astype(np.float64) for array in (query, key, value))
    return q, k, v, q.shape[-3] // k.shape[-3] if k.shape[-3] else 1


def _scores(q: np.ndarray, k: np.ndarray, bias: Any, mask: np.ndarray | None, scale: float | None) -> np.ndarray:
    """-inf where nothing may be attended to."""
    group = q.shape[-3] // k.shape[-3] if k.shape[-3] else 1
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    with np.errstate(invalid="ignore", over="ignore"):
        scores = factor * np.matmul(q, np.swapaxes(np.repeat(k, group, axis=-3), -1, -2))
        if bias is not None:
            dense = np.asarray(dense_bias(bias))
            added = dense.astype(np.float64) if dense.dtype != object else np.vectorize(float, otypes=[float])(dense)
            scores = np.where(np.broadcast_to(added, scores.shape) == -math.inf, -math.inf, scores + added)
    return scores if mask is None else np.where(mask, scores, -math.inf)


def _product(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What stands where a weight is 0 has no part in it; elsewhere nan and inf do."""
    missing = ~np.isfinite(rows)
    product = np.matmul(weights, np.where(missing, 0.0, rows))
    if not missing.any():
        return product
    return np.where(np.matmul((weights != 0).astype(np.float64), missing.astype(np.float64)) > 0, math.nan, product)


def _by_group(array: np.ndarray, group: int) -> np.ndarray:
    *batch, H, rows, columns = array.shape
    return array.reshape(*batch, H // group, group, rows, columns).sum(axis=-3)


def _sum_to(dense: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    padded = (1,) * (dense.ndim - len(shape)) + tuple(shape)
    axes = tuple(axis for axis, size in enumerate(padded) if size == 1)
    return dense.sum(axis=axes, keepdims=True).reshape(shape)


def _plain(array: np.ndarray) -> Exact:
    return Exact(array, np.zeros(array.shape))
