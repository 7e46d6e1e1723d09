"""Gradients of the bias functions in closed form: of their parameters and of the positions."""

from __future__ import annotations

from typing import Any

from ._arrays import Array, array_namespace, dtype_name, move_axis, widen
from ._bias import BoxMLP, EdgeMLP, LinearOffset, OffsetMLP, relu
from ._position_bias import PositionBias
from ._positions import is_integer

__all__ = ["position_bias_vjp", "sum_to_shape"]


def position_bias_vjp(bias: PositionBias, cotangent: Array) -> PositionBias:
    """Gradients of a position bias, as a PositionBias whose leaves are gradients.

    ``cotangent`` has the shape of ``bias.dense()``, (..., H, M, N), and its dtype.

    Raises
    ------
    TypeError
        For an OffsetTable, whose gradient is a scatter, which the array API standard does not have (IA-G-02).
    """
    relative = bias.f.offsets(bias.query_positions, bias.value_positions)
    df: OffsetMLP | LinearOffset
    match bias.f:
        case OffsetMLP():
            df, dt = _offset_mlp_vjp(bias.f, relative, cotangent)
        case LinearOffset():
            df, dt = _linear_vjp(bias.f, relative, cotangent)
        case BoxMLP():
            return _box_vjp(bias, relative, cotangent)
        case _:
            raise TypeError(
                f"`bias.f` must be OffsetMLP, LinearOffset or BoxMLP for closed-form gradients; "
                f"got {type(bias.f).__name__}; give bias.dense() for the gradient of the matrix [IA-X-14]"
            )
    xp = array_namespace(dt)
    return PositionBias(
        df,
        _like(bias.query_positions, -xp.sum(dt, axis=-1)),
        _like(bias.value_positions, xp.sum(dt, axis=-2)),
    )


def sum_to_shape(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient back over the axes along which its input was broadcast."""
    xp = array_namespace(gradient)
    extra = gradient.ndim - len(shape)
    broadcast = [extra + axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[extra + axis] != 1]
    axes = (*range(extra), *broadcast)
    return xp.reshape(xp.sum(gradient, axis=axes), shape) if axes else gradient


def _two_layers_vjp(f: OffsetMLP | EdgeMLP, t: Array, w1: Array, cotangent: Array) -> tuple[Any, Array]:
    """Of ``relu(t w1 + b1) w2 + b2`` at t (..., K), with cotangent (..., H)."""
    xp = array_namespace(t)
    b1, w2 = widen(f.b1), widen(f.w2)
    t = xp.where(xp.any(cotangent != 0.0, axis=-1)[..., None], t, 0.0)  # where nothing flows back, t may be nan
    t_rows = xp.reshape(t, (-1, t.shape[-1]))  # (rows, K)
    out_rows = xp.reshape(cotangent, (-1, cotangent.shape[-1]))  # (rows, H)
    before = xp.matmul(t_rows, w1) + b1  # (rows, hidden)
    to_hidden = xp.matmul(out_rows, xp.matrix_transpose(w2))
    to_before = xp.where(before > 0.0, to_hidden, 0.0)
    gradients = (
        xp.matmul(xp.matrix_transpose(t_rows), to_before),  # w1
        xp.sum(to_before, axis=0),  # b1
        xp.matmul(xp.matrix_transpose(relu(xp, before)), out_rows),  # w2
        xp.sum(out_rows, axis=0),  # b2
    )
    shaped = [_like(part, xp.reshape(g, part.shape)) for part, g in zip(f, gradients, strict=True)]
    return type(f)(*shaped), xp.reshape(xp.matmul(to_before, xp.matrix_transpose(w1)), t.shape)


def _offset_mlp_vjp(f: OffsetMLP, relative: Array, cotangent: Array) -> tuple[OffsetMLP, Array]:
    xp = array_namespace(relative)
    t = xp.astype(relative, f.dtype, copy=False)[..., None]  # (..., M, N, 1)
    df, dt = _two_layers_vjp(f, t, widen(f.w1)[None, :], move_axis(cotangent, -3, -1))
    return df, dt[..., 0]


def _linear_vjp(f: LinearOffset, relative: Array, cotangent: Array) -> tuple[LinearOffset, Array]:
    xp = array_namespace(relative)
    t = xp.astype(relative, f.dtype, copy=False)
    t = xp.where(xp.any(cotangent != 0.0, axis=-3), t, 0.0)  # where nothing flows back, t may be nan
    per_head = -xp.sum(xp.abs(t)[..., None, :, :] * cotangent, axis=(-2, -1))  # (..., H)
    dt = -xp.sum(widen(f.slopes)[:, None, None] * cotangent, axis=-3) * xp.sign(t)
    return LinearOffset(_like(f.slopes, sum_to_shape(per_head, tuple(f.slopes.shape)))), dt


def _box_vjp(bias: PositionBias, relative: Any, cotangent: Array) -> PositionBias:
    xp = array_namespace(cotangent)
    f, grid = bias.f, bias.value_positions
    R, W = grid.y.shape[0], grid.x.shape[0]
    by_pixel = xp.reshape(cotangent, (*cotangent.shape[:-1], R, W))  # (..., H, M, R, W)
    sides = {}
    for axis, summed in (("x", -2), ("y", -1)):
        edge = getattr(f, axis)
        t = xp.astype(getattr(relative, axis), f.dtype, copy=False)  # (..., M, L, 2)
        lines = move_axis(xp.sum(by_pixel, axis=summed), -3, -1)  # (..., M, L, H)
        sides[axis] = _two_layers_vjp(edge, t, widen(edge.w1), lines)
    (fx, dx), (fy, dy) = sides["x"], sides["y"]
    to_x, to_y = xp.sum(dx, axis=-2), xp.sum(dy, axis=-2)  # (..., M, 2)
    boxes = xp.stack([to_x[..., 0], to_y[..., 0], to_x[..., 1], to_y[..., 1]], axis=-1)
    lines_x, lines_y = -xp.sum(dx, axis=-1), -xp.sum(dy, axis=-1)  # (..., M, W), (..., M, R)
    return PositionBias(
        BoxMLP(fx, fy),
        _like(bias.query_positions, boxes),
        type(grid)(
            _like(grid.x, sum_to_shape(lines_x, (W,))),
            _like(grid.y, sum_to_shape(lines_y, (R,))),
        ),
    )


def _like(original: Array, gradient: Array) -> Array | None:
    """A gradient in the original's shape and dtype; integer positions have none."""
    if is_integer(original):
        return None
    gradient = sum_to_shape(gradient, tuple(original.shape))
    if dtype_name(gradient.dtype) == dtype_name(original.dtype):
        return gradient
    return array_namespace(gradient).astype(gradient, original.dtype)
