"""Relative positions P (P11, P12): from query positions to value positions.

==================  ===================  ==================================================
array               shape                meaning
==================  ===================  ==================================================
query_positions     (..., M)             p_i, integer or real
value_positions     (..., N)             where value j stands, integer or real
offsets P           (..., M, N)          P_ij = value position j - query position i
boxes               (..., M, 4)          x0, y0, x1, y1 of query i
grid                (W,) and (R,)        the columns' and the rows' coordinates, N = R * W
==================  ===================  ==================================================
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, Namespace, dtype_name, namespace_of, widen

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Real

__all__ = ["BoxOffsets", "Grid", "box_offsets", "offsets", "pixel_grid", "relative_positions"]


def relative_positions(
    m: int, n: int, *, xp: Namespace | None = None, dtype: Any = None, device: Any = None
) -> Int[Array, "M N"]:
    """The first layer's relative positions ``P_ij = j - i`` (P11).

    Parameters
    ----------
    m, n : int
        Number of queries and of values.
    xp : namespace, optional
        The array library; NumPy by default.
    dtype, device : optional
        Of the result: int32, int64, float32 or float64; the library's default integer and device otherwise.

    Returns
    -------
    array of shape (m, n)

    Raises
    ------
    TypeError, ValueError
        If m or n is no integer or negative, or the dtype cannot hold the offsets (IA-X-15).

    Notes
    -----
    Section 4 of arXiv 2509.26015: the offset from query position i to value position j.

    Examples
    --------
    >>> relative_positions(2, 4)
    array([[ 0,  1,  2,  3],
           [-1,  0,  1,  2]])
    """
    if not isinstance(m, Integral) or not isinstance(n, Integral):
        raise TypeError(f"`m` and `n` must be integers; got m = {m}, n = {n} [IA-X-15]")
    if m < 0 or n < 0:
        raise ValueError(f"`m` and `n` must not be negative; got m = {m}, n = {n} [IA-X-15]")
    if dtype is not None and dtype_name(dtype) not in ("int32", "int64", "float32", "float64"):
        raise TypeError(f"`dtype` must be int32, int64, float32 or float64; got {dtype_name(dtype)} [IA-X-15]")
    xp = _numpy() if xp is None else xp
    rows = xp.arange(m, dtype=dtype, device=device)
    columns = xp.arange(n, dtype=dtype, device=device)
    return columns[None, :] - rows[:, None]


def offsets(query_positions: Real[Array, "... M"], value_positions: Real[Array, "... N"]) -> Real[Array, "... M N"]:
    """Offsets from query positions to value positions, ``P_ij = v_j - p_i`` (P11, P12).

    Parameters
    ----------
    query_positions : array of shape (..., M)
        Integer or real. Halves are widened before they are subtracted: beyond 2048 they cannot count.
    value_positions : array of shape (..., N)
        The leading axes broadcast.

    Returns
    -------
    array of shape (..., M, N)
        Integer if both are, else in the working dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is no array, is complex or boolean, or has no axis (IA-X-01, IA-X-15).

    Notes
    -----
    Equations P11 and P12 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> offsets(np.asarray([0.0, 1.5]), np.asarray([0.0, 1.0, 2.0]))
    array([[ 0. ,  1. ,  2. ],
           [-1.5, -0.5,  0.5]])
    """
    namespace_of(query_positions=query_positions, value_positions=value_positions)
    query_positions = _as_position("query_positions", query_positions, 1)
    value_positions = _as_position("value_positions", value_positions, 1)
    query_positions, value_positions = _same_kind(query_positions, value_positions)
    return value_positions[..., None, :] - query_positions[..., :, None]


class Grid(NamedTuple):
    """The coordinates of an image's columns and rows; pixel ``j = r * W + c`` stands at ``(x[c], y[r])``.

    Attributes
    ----------
    x : array of shape (W,)
    y : array of shape (R,)

    Examples
    --------
    >>> pixel_grid(2, 3).x
    array([0., 1., 2.])
    """

    x: Real[Array, "W"]
    y: Real[Array, "R"]


class BoxOffsets(NamedTuple):
    """Offsets of a box's edges from the columns and from the rows.

    Attributes
    ----------
    x : array of shape (..., M, W, 2)
        ``x0 - c`` and ``x1 - c``.
    y : array of shape (..., M, R, 2)
        ``y0 - r`` and ``y1 - r``.

    Examples
    --------
    >>> import numpy as np
    >>> box_offsets(np.asarray([[1.0, 0.0, 2.0, 1.0]]), pixel_grid(1, 2)).x
    array([[[1., 2.],
            [0., 1.]]])
    """

    x: Float[Array, "... M W 2"]
    y: Float[Array, "... M R 2"]


def pixel_grid(height: int, width: int, *, xp: Namespace | None = None, dtype: Any = None, device: Any = None) -> Grid:
    """The grid of whole pixels: columns at 0 .. width - 1, rows at 0 .. height - 1.

    Parameters
    ----------
    height, width : int
        Number of rows and of columns.
    xp : namespace, optional
        The array library; NumPy by default.
    dtype, device : optional
        A floating dtype (the library's default float otherwise) and a device.

    Returns
    -------
    Grid

    Raises
    ------
    ValueError
        If a size is negative (IA-X-15).

    Notes
    -----
    Section 6 of the notes on arXiv 2509.26015 (BoxRPB: pixel column c, pixel row r).

    Examples
    --------
    >>> pixel_grid(2, 3).y
    array([0., 1.])
    """
    if height < 0 or width < 0:
        raise ValueError(f"`height` and `width` must not be negative; got {height} and {width} [IA-X-15]")
    xp = _numpy() if xp is None else xp
    dtype = xp.ones((), dtype=dtype, device=device).dtype  # the library's default float, if none is given
    return Grid(xp.arange(width, dtype=dtype, device=device), xp.arange(height, dtype=dtype, device=device))


def box_offsets(boxes: Float[Array, "... M 4"], grid: Grid) -> BoxOffsets:
    """Offsets of box edges from pixel columns and rows: ``(x0 - c, x1 - c)`` and ``(y0 - r, y1 - r)``.

    Parameters
    ----------
    boxes : array of shape (..., M, 4)
        ``x0, y0, x1, y1`` in the grid's units.
    grid : Grid

    Returns
    -------
    BoxOffsets

    Raises
    ------
    TypeError, ValueError
        If boxes have not four coordinates, or the grid is no Grid (IA-X-15).

    Notes
    -----
    The box-to-pixel relative position bias of section 6.2 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> box_offsets(np.asarray([[1.0, 0.0, 2.0, 4.0]]), pixel_grid(2, 1)).y
    array([[[ 0.,  4.],
            [-1.,  3.]]])
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"`value_positions` of a box bias must be a Grid; got {type(grid).__name__} [IA-X-15]")
    xp = namespace_of(boxes=boxes, x=grid.x, y=grid.y)
    boxes = _as_position("boxes", boxes, 2)
    if boxes.shape[-1] != 4:
        raise ValueError(f"`boxes` must have the last axis x0, y0, x1, y1; got shape {tuple(boxes.shape)} [IA-X-15]")
    boxes, columns = _same_kind(boxes, _as_position("grid.x", grid.x, 1))
    boxes, rows = _same_kind(boxes, _as_position("grid.y", grid.y, 1))
    x_edges = xp.stack([boxes[..., 0], boxes[..., 2]], axis=-1)  # (..., M, 2)
    y_edges = xp.stack([boxes[..., 1], boxes[..., 3]], axis=-1)  # (..., M, 2)
    return BoxOffsets(
        x_edges[..., :, None, :] - columns[:, None],  # (..., M, W, 2)
        y_edges[..., :, None, :] - rows[:, None],  # (..., M, R, 2)
    )


def _as_position(name: str, array: Array, least_rank: int) -> Array:
    if array.ndim < least_rank:
        raise ValueError(f"`{name}` must have at least {least_rank} axes; got shape {tuple(array.shape)} [IA-X-15]")
    kind = dtype_name(array.dtype)
    if kind in ("int8", "int16", "uint8", "uint16"):  # their differences would wrap around
        xp = namespace_of(array=array)
        return xp.astype(array, xp.int32)
    if is_integer(array):
        return array
    check_position_dtype(name, array)
    return widen(array)


def check_position_dtype(name: str, array: Array) -> None:
    kind = dtype_name(array.dtype)
    if not is_integer(array) and kind not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"`{name}` must be signed integers, uint8, uint16 or floating; got {kind} [IA-X-15]")


def _same_kind(one: Array, other: Array) -> tuple[Array, Array]:
    """Integers stay integers, exactly, unless the other side is real."""
    xp = namespace_of(one=one, other=other)
    if is_integer(one) and not is_integer(other):
        one = xp.astype(one, other.dtype)
    if is_integer(other) and not is_integer(one):
        other = xp.astype(other, one.dtype)
    if not is_integer(one) and dtype_name(one.dtype) != dtype_name(other.dtype):
        names = f"{dtype_name(one.dtype)} and {dtype_name(other.dtype)}"
        raise TypeError(f"positions must have one floating dtype; got {names} [IA-X-15]")
    return one, other


def is_integer(array: Array) -> bool:
    """Whether an array holds integers that can be subtracted (uint32 and uint64 cannot)."""
    return dtype_name(array.dtype) in ("int8", "int16", "int32", "int64", "uint8", "uint16")


def _numpy() -> Namespace:
    import array_api_compat.numpy

    return array_api_compat.numpy
