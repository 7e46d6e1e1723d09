"""Convolutions and group norm as array API calls: shifted copies side by side, and one matrix product.

==================  ==========================  ==============================================
array               shape                       meaning
==================  ==========================  ==============================================
x, one axis         (B, T, C)                   channels last
x, two axes         (B, R, W, C)
weight              (k C, O), (k k C, O)        taps outermost, then channels
==================  ==========================  ==============================================
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ia_core import Linear, init_linear

__all__ = ["conv1d", "conv2d", "group_norm", "init_conv", "relu"]


def init_conv(rng: np.random.Generator, taps: int, inputs: int, outputs: int) -> Linear:
    """A random convolution of so many taps (k, or k k), as :func:`ia_core.init_linear`."""
    return init_linear(rng, taps * inputs, outputs)


def conv1d(params: Linear, x: Any, *, stride: int = 1, dilation: int = 1) -> Any:
    """Along the middle axis, zeros beyond the ends: (B, T, C) to (B, T / stride, O)."""
    taps = params.weight.shape[0] // x.shape[-1]
    columns = _shifts(x, 1, taps, stride, dilation)
    return array_api_compat.array_namespace(x).concat(columns, axis=-1) @ params.weight + params.bias


def conv2d(params: Linear, x: Any, *, stride: int = 1) -> Any:
    """Over the two middle axes, zeros beyond the edges: (B, R, W, C) to (B, R / stride, W / stride, O)."""
    xp = array_api_compat.array_namespace(x)
    taps = round((params.weight.shape[0] // x.shape[-1]) ** 0.5)
    rows = _shifts(x, 1, taps, stride, 1)
    columns = [part for row in rows for part in _shifts(row, 2, taps, stride, 1)]
    return xp.concat(columns, axis=-1) @ params.weight + params.bias


def group_norm(params: Any, x: Any, groups: int = 4) -> Any:
    """Normalisation over all positions and the channels of a group; params is a LayerNorm of width C."""
    xp = array_api_compat.array_namespace(x)
    batch, channels = x.shape[0], x.shape[-1]
    parts = xp.reshape(x, (batch, -1, groups, channels // groups))
    centred = parts - xp.mean(parts, axis=(1, 3), keepdims=True)
    normed = centred / xp.sqrt(xp.mean(centred * centred, axis=(1, 3), keepdims=True) + 1e-5)
    return xp.reshape(normed, x.shape) * params.weight + params.bias


def relu(x: Any) -> Any:
    """The larger of x and 0."""
    return array_api_compat.array_namespace(x).where(x > 0.0, x, 0.0)


def _shifts(x: Any, axis: int, taps: int, stride: int, dilation: int) -> list[Any]:
    """Copies of x shifted by each tap along an axis, every stride-th of them."""
    xp = array_api_compat.array_namespace(x)
    size, reach = x.shape[axis], dilation * (taps - 1)
    before = (reach - (stride - 1 if taps > 1 else 0) + 1) // 2
    shape = list(x.shape)
    shape[axis] = reach
    edge = xp.zeros(shape, dtype=x.dtype, device=array_api_compat.device(x))
    wide = xp.concat([_cut(edge, axis, 0, before), x, _cut(edge, axis, before, reach)], axis=axis)
    return [_cut(wide, axis, tap * dilation, tap * dilation + size, stride) for tap in range(taps)]


def _cut(x: Any, axis: int, start: int, stop: int, stride: int = 1) -> Any:
    return x[(slice(None),) * axis + (slice(start, stop, stride),)]
