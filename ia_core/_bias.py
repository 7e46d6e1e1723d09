"""The learned bias f(P_ij): functions from relative positions to one bias per head (P11).

Each function is a NamedTuple of its parameters, with ``offsets`` (positions to relative positions P)
and a call (P to one bias per head).

==================  ==============================  ==============================
function            parameters                      P to bias
==================  ==============================  ==============================
OffsetMLP           (hidden,), (hidden,),           (..., M, N) to (..., H, M, N)
                    (hidden, H), (H,)
OffsetTable         (H, 2 R + 1)                    the same
LinearOffset        (H,)                            the same
BoxMLP              two EdgeMLP                     BoxOffsets to (..., H, M, N)
==================  ==============================  ==============================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import (
    Array,
    array_namespace,
    check_floating,
    dtype_name,
    move_axis,
    namespace_of,
    widen,
    widest_integer,
    working_dtype,
)
from ._positions import BoxOffsets, Grid, box_offsets, offsets
from ._queries import take_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Real

__all__ = ["BoxMLP", "EdgeMLP", "LinearOffset", "OffsetMLP", "OffsetTable"]


class OffsetMLP(NamedTuple):
    """A two-layer ReLU network from one offset to one bias per head: ``f(t) = relu(t w1 + b1) w2 + b2`` (P11).

    Attributes
    ----------
    w1, b1 : array of shape (hidden,)
    w2 : array of shape (hidden, H)
    b2 : array of shape (H,)

    Raises
    ------
    TypeError, ValueError
        When used, if the sizes or dtypes do not fit (IA-X-14).

    Notes
    -----
    Section 4 of arXiv 2509.26015. Of one number, it is a piecewise linear function with at most ``hidden`` knots.

    Examples
    --------
    >>> import numpy as np
    >>> f = OffsetMLP(np.asarray([1.0, -1.0]), np.zeros(2), np.asarray([[-1.0], [-2.0]]), np.zeros(1))
    >>> f(np.asarray([[-3.0, 0.0, 3.0]]))
    array([[[-6.,  0., -3.]]])
    """

    w1: Float[Array, "hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden H"]
    b2: Float[Array, "H"]

    def __call__(self, relative: Real[Array, "... M N"]) -> Float[Array, "... H M N"]:
        """Evaluate f at every relative position."""
        self.check()
        t = as_float(relative, self.dtype)
        bias = two_layers(t[..., None], widen(self.w1)[None, :], widen(self.b1), widen(self.w2), widen(self.b2))
        return move_axis(bias, -1, -3)  # (..., M, N, H) to (..., H, M, N)

    def offsets(self, query_positions: Array, value_positions: Array) -> Array:
        """P_ij = value position j - query position i."""
        return offsets(query_positions, value_positions)

    @property
    def query_rank(self) -> int:
        """Axes of one set of query positions, (M,)."""
        return 1

    @property
    def heads(self) -> int:
        """H."""
        return int(self.w2.shape[-1])

    @property
    def dtype(self) -> Any:
        """The working dtype of the parameters, in which f is computed."""
        return working_dtype(self.w1)

    def check(self) -> Any:
        """The namespace of the parameters, if they fit together (IA-X-14)."""
        hidden = self.w1.shape[0] if self.w1.ndim else 0
        return check_parameters(
            "OffsetMLP", self, {"w1": (hidden,), "b1": (hidden,), "w2": (hidden, None), "b2": self.w2.shape[1:]}
        )


class EdgeMLP(NamedTuple):
    """A two-layer ReLU network from the offsets of a box's two edges to one bias per head.

    Attributes
    ----------
    w1 : array of shape (2, hidden)
    b1 : array of shape (hidden,)
    w2 : array of shape (hidden, H)
    b2 : array of shape (H,)

    Raises
    ------
    TypeError, ValueError
        When used, if the sizes or dtypes do not fit (IA-X-14).

    Notes
    -----
    One axis of the box-to-pixel bias of section 6.2 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> EdgeMLP(np.ones((2, 3)), np.zeros(3), np.ones((3, 1)), np.zeros(1))(np.ones((1, 5, 2))).shape
    (1, 1, 5)
    """

    w1: Float[Array, "2 hidden"]
    b1: Float[Array, "hidden"]
    w2: Float[Array, "hidden H"]
    b2: Float[Array, "H"]

    def __call__(self, edges: Real[Array, "... M L 2"]) -> Float[Array, "... H M L"]:
        """Evaluate on the offsets of both edges from each of L lines."""
        self.check()
        t = as_float(edges, self.dtype)
        bias = two_layers(t, widen(self.w1), widen(self.b1), widen(self.w2), widen(self.b2))
        return move_axis(bias, -1, -3)  # (..., M, L, H) to (..., H, M, L)

    @property
    def dtype(self) -> Any:
        """The working dtype of the parameters."""
        return working_dtype(self.w1)

    def check(self) -> Any:
        """The namespace of the parameters, if they fit together (IA-X-14)."""
        hidden = self.w1.shape[-1] if self.w1.ndim else 0
        return check_parameters(
            "EdgeMLP", self, {"w1": (2, hidden), "b1": (hidden,), "w2": (hidden, None), "b2": self.w2.shape[1:]}
        )


class BoxMLP(NamedTuple):
    """The separable box-to-pixel bias: ``f(r, c) = f_x(x0 - c, x1 - c) + f_y(y0 - r, y1 - r)``.

    Attributes
    ----------
    x, y : EdgeMLP
        For the columns and for the rows.

    Raises
    ------
    TypeError, ValueError
        When used, if the two do not fit together (IA-X-14).

    Notes
    -----
    BoxRPB in section 6.2 of arXiv 2509.26015. Pixels are numbered by rows, ``j = r * W + c``.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import box_offsets, pixel_grid
    >>> edge = EdgeMLP(np.ones((2, 3)), np.zeros(3), np.ones((3, 4)), np.zeros(4))
    >>> BoxMLP(edge, edge)(box_offsets(np.zeros((5, 4)), pixel_grid(2, 3))).shape
    (4, 5, 6)
    """

    x: EdgeMLP
    y: EdgeMLP

    def __call__(self, relative: BoxOffsets) -> Float[Array, "... H M N"]:
        """Evaluate at every box and pixel."""
        xp = self.check()
        columns = self.x(relative.x)[..., None, :]  # (..., H, M, 1, W)
        rows = self.y(relative.y)[..., :, None]  # (..., H, M, R, 1)
        bias = columns + rows  # (..., H, M, R, W)
        return xp.reshape(bias, (*bias.shape[:-2], bias.shape[-2] * bias.shape[-1]))

    def offsets(self, query_positions: Array, value_positions: Grid) -> BoxOffsets:
        """Offsets of the boxes' edges from the grid's lines."""
        return box_offsets(query_positions, value_positions)

    @property
    def query_rank(self) -> int:
        """Axes of one set of boxes, (M, 4)."""
        return 2

    @property
    def heads(self) -> int:
        """H."""
        return int(self.x.w2.shape[-1])

    @property
    def dtype(self) -> Any:
        """The working dtype of the parameters."""
        return self.x.dtype

    def check(self) -> Any:
        """The namespace of the parameters, if they fit together (IA-X-14)."""
        self.y.check()
        if self.y.w2.shape[-1] != self.x.w2.shape[-1] or dtype_name(self.y.dtype) != dtype_name(self.x.dtype):
            raise ValueError(
                f"`BoxMLP.y` must have the heads and dtype of x, {self.heads} and {dtype_name(self.dtype)}; "
                f"got {self.y.w2.shape[-1]} and {dtype_name(self.y.dtype)} [IA-X-14]"
            )
        return self.x.check()


class OffsetTable(NamedTuple):
    """A table of biases for the offsets -R .. R; linear in between, constant beyond.

    Attributes
    ----------
    values : array of shape (H, 2 R + 1)
        ``values[h, R + t]`` is the bias of head h at offset t.

    Raises
    ------
    TypeError, ValueError
        When used, if the table has an even number of columns (IA-X-14).

    Examples
    --------
    >>> import numpy as np
    >>> OffsetTable(np.asarray([[1.0, 2.0, 4.0]]))(np.asarray([[-7.0, 0.0, 0.5, 1.0]]))
    array([[[1., 2., 3., 4.]]])
    """

    values: Float[Array, "H 2R+1"]

    def __call__(self, relative: Real[Array, "... M N"]) -> Float[Array, "... H M N"]:
        """Evaluate f at every relative position."""
        xp = self.check()
        values = widen(self.values)
        columns = values.shape[-1]
        t = xp.clip(as_float(relative, self.dtype) + columns // 2, 0.0, float(columns - 1))
        left = xp.floor(xp.where(xp.isnan(t), 0.0, t))
        part = (t - left)[..., None, :, :]  # (..., 1, M, N)
        at_left = _look_up(xp, values, left)
        at_right = _look_up(xp, values, xp.clip(left + 1.0, 0.0, float(columns - 1)))
        # An infinite entry is the table on itself and as far as its neighbours; weights of 0 would make 0 * inf.
        lines = (xp.isfinite(at_left) & xp.isfinite(at_right)) | xp.isnan(part)
        between = (1.0 - part) * xp.where(lines, at_left, 0.0) + part * xp.where(lines, at_right, 0.0)
        return xp.where(lines, between, xp.where(part == 0.0, at_left, at_left + at_right))

    def offsets(self, query_positions: Array, value_positions: Array) -> Array:
        """P_ij = value position j - query position i."""
        return offsets(query_positions, value_positions)

    @property
    def query_rank(self) -> int:
        """Axes of one set of query positions, (M,)."""
        return 1

    @property
    def heads(self) -> int:
        """H."""
        return int(self.values.shape[0])

    @property
    def dtype(self) -> Any:
        """The working dtype of the table."""
        return working_dtype(self.values)

    def check(self) -> Any:
        """The namespace of the table, if it fits (IA-X-14)."""
        xp = check_parameters("OffsetTable", self, {"values": (None, None)})
        if self.values.shape[-1] % 2 == 0:
            raise ValueError(
                f"`OffsetTable.values` must have 2 R + 1 columns; got shape {tuple(self.values.shape)} [IA-X-14]"
            )
        return xp


class LinearOffset(NamedTuple):
    """A penalty linear in the distance: ``f_h(t) = -slopes_h |t|`` (ALiBi).

    Attributes
    ----------
    slopes : array of shape (H,)

    Raises
    ------
    TypeError, ValueError
        When used, if the slopes are not one row of floats (IA-X-14).

    Notes
    -----
    With a causal mask this is ALiBi (Press, Smith and Lewis, arXiv 2108.12409).

    Examples
    --------
    >>> import numpy as np
    >>> LinearOffset(np.asarray([0.5]))(np.asarray([[-2.0, 0.0, 1.0]]))
    array([[[-1. , -0. , -0.5]]])
    """

    slopes: Float[Array, "H"]

    def __call__(self, relative: Real[Array, "... M N"]) -> Float[Array, "... H M N"]:
        """Evaluate f at every relative position."""
        xp = self.check()
        distance = xp.abs(as_float(relative, self.dtype))
        return -widen(self.slopes)[:, None, None] * distance[..., None, :, :]

    def offsets(self, query_positions: Array, value_positions: Array) -> Array:
        """P_ij = value position j - query position i."""
        return offsets(query_positions, value_positions)

    @property
    def query_rank(self) -> int:
        """Axes of one set of query positions, (M,)."""
        return 1

    @property
    def heads(self) -> int:
        """H."""
        return int(self.slopes.shape[0])

    @property
    def dtype(self) -> Any:
        """The working dtype of the slopes."""
        return working_dtype(self.slopes)

    def check(self) -> Any:
        """The namespace of the slopes, if they fit (IA-X-14)."""
        return check_parameters("LinearOffset", self, {"slopes": (None,)})


def two_layers(t: Array, w1: Array, b1: Array, w2: Array, b2: Array) -> Array:
    """relu(t w1 + b1) w2 + b2 over the last axis."""
    xp = namespace_of(t=t, w1=w1)
    return xp.matmul(relu(xp, xp.matmul(t, w1) + b1), w2) + b2


def relu(xp: Any, x: Array) -> Array:
    """max(x, 0), nan kept, with the gradient 0 at 0 in every library (``maximum`` splits it between equals)."""
    return xp.where(x <= 0.0, 0.0, x)


def check_parameters(owner: str, parameters: Any, shapes: dict[str, tuple[int | None, ...]]) -> Any:
    """The common namespace of named parameters, whose shapes must be as given; None is any size (IA-X-14)."""
    arrays = dict(zip(parameters._fields, parameters, strict=True))
    xp = namespace_of(**{f"{owner}.{name}": array for name, array in arrays.items()})
    for name, array in arrays.items():
        check_floating(f"{owner}.{name}", array)
        wanted, shape = shapes[name], tuple(array.shape)
        if len(shape) != len(wanted) or any(w is not None and w != s for w, s in zip(wanted, shape, strict=True)):
            axes = str(tuple("any" if size is None else size for size in wanted)).replace("'", "")
            raise ValueError(f"`{owner}.{name}` must have shape {axes}; got {shape} [IA-X-14]")
    names = {dtype_name(array.dtype) for array in arrays.values()}
    if len(names) > 1:
        raise TypeError(f"`{owner}` must have parameters of one floating dtype; got {sorted(names)} [IA-X-14]")
    return xp


def as_float(relative: Array, dtype: Any) -> Array:
    """Relative positions, which may be integers, in a floating dtype."""
    return array_namespace(relative).astype(relative, dtype, copy=False)


def _look_up(xp: Any, values: Array, t: Array) -> Array:
    """Columns t (..., M, N) of values (H, columns), as (..., H, M, N)."""
    return move_axis(take_rows(xp.matrix_transpose(values), xp.astype(t, widest_integer(xp))), -1, -3)
