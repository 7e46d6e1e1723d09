"""The bias function compiled: a two-layer ReLU network of one number is piecewise linear, exactly (P11).

A hidden unit ``relu(t w1_k + b1_k)`` is 0 on one side of its knot ``-b1_k / w1_k`` and linear on the other. Between two
neighbouring knots the active units are the same, and f is one line; so f at any number of offsets costs a
search and one multiplication each, whatever ``hidden`` is.

==================  =================  ==================================================
array               shape              meaning
==================  =================  ==================================================
knots               (K,)               ascending; those at infinity are never passed
slopes, intercepts  (2 K + 1, H)       one line for each cell and head
cells 0, 2, ... 2K                     below, between and above the knots
cells 1, 3, ... 2K-1                   the knots themselves
==================  =================  ==================================================

A knot is a cell of its own because a ReLU has the derivative 0 at 0: on its knot a unit is not active yet.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ._arrays import (
    Array,
    array_namespace,
    check_floating,
    device,
    dtype_name,
    move_axis,
    namespace_of,
    widest,
    working_dtype,
)
from ._bias import BoxMLP, LinearOffset, OffsetMLP, OffsetTable, as_float
from ._positions import offsets
from ._queries import take_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Real

__all__ = ["BiasFunction", "PiecewiseLinear"]


class PiecewiseLinear(NamedTuple):
    """A function of one offset as straight lines between knots: ``f_h(t) = slope_h t + intercept_h`` (P11).

    Attributes
    ----------
    knots : array of shape (K,)
        Ascending. Its working dtype is that of the bias.
    slopes, intercepts : array of shape (2 K + 1, H)
        Of the cells: below the first knot, on it, between it and the second, on that, and so on. In float64, or in
        the dtype of the knots where the library has no float64.

    Raises
    ------
    TypeError, ValueError
        When used, if the sizes or dtypes do not fit (IA-X-14).

    Notes
    -----
    Section 4 of arXiv 2509.26015 has f as a network of two layers; :meth:`from_mlp` gives the same function. Parameters
    and offsets must be finite: an infinite weight, which a ReLU stops on one side, is nan on both here.

    Examples
    --------
    >>> import numpy as np
    >>> f = PiecewiseLinear(np.asarray([0.0]), np.asarray([[1.0], [0.0], [-2.0]]), np.zeros((3, 1)))
    >>> f(np.asarray([[-3.0, 0.0, 3.0]]))
    array([[[-3.,  0., -6.]]])
    """

    knots: Float[Array, "K"]
    slopes: Float[Array, "2K+1 H"]
    intercepts: Float[Array, "2K+1 H"]

    @classmethod
    def from_mlp(cls, f: OffsetMLP) -> PiecewiseLinear:
        """The same function as a network, to rounding; differentiable in the network's parameters.

        Parameters
        ----------
        f : OffsetMLP

        Returns
        -------
        PiecewiseLinear
            With one knot per hidden unit. Compiling takes ``hidden ** 2 * H`` operations, once for all offsets.

        Raises
        ------
        TypeError, ValueError
            If f is no OffsetMLP, or its parameters do not fit together (IA-X-14).

        Examples
        --------
        >>> import numpy as np
        >>> f = OffsetMLP(np.asarray([2.0, -1.0]), np.asarray([-2.0, 0.0]), np.ones((2, 1)), np.zeros(1))
        >>> g = PiecewiseLinear.from_mlp(f)
        >>> g.knots
        array([0., 1.])
        >>> bool(np.all(g(np.asarray([[-3.0, 0.5, 4.0]])) == f(np.asarray([[-3.0, 0.5, 4.0]]))))
        True
        """
        _check_kind(f, OffsetMLP)
        xp = f.check()
        w1, b1, w2, b2 = (xp.astype(part, widest(xp)) for part in f)
        # A unit whose knot no finite offset reaches is constant: dead, or active everywhere, as nan must be.
        far = ~(xp.abs(b1) / float(xp.finfo(f.dtype).max) < xp.abs(w1))
        dead = far & (b1 <= 0.0) & ~xp.isnan(w1)
        rising = far | (w1 > 0.0)  # active above its knot, not below
        knots = -b1 / xp.where(far, 1.0, w1)
        knots = xp.where(far, xp.where(dead, math.inf, xp.full_like(b1, -math.inf)), knots)
        knots = xp.astype(knots, f.dtype)
        ordered = xp.take(knots, xp.argsort(knots), axis=0)
        end = xp.full((1,), math.inf, dtype=knots.dtype, device=device(knots))
        each_twice = xp.repeat(ordered, 2)
        below = xp.concat([-end, each_twice])[:, None]  # (2K + 1, 1): where a cell begins
        above = xp.concat([each_twice, end])[:, None]  # and where it ends
        active = xp.astype(xp.where(rising, knots < above, knots > below), w1.dtype)  # (2K + 1, hidden)
        w1, b1 = xp.where(dead, 0.0, w1), xp.where(dead, 0.0, b1)  # -inf is stopped by the ReLU; 0 times it is nan
        return cls(ordered, xp.matmul(active, w1[:, None] * w2), xp.matmul(active, b1[:, None] * w2) + b2)

    @classmethod
    def from_table(cls, f: OffsetTable) -> PiecewiseLinear:
        """The same function as a table, whose entries are the knots.

        Parameters
        ----------
        f : OffsetTable

        Returns
        -------
        PiecewiseLinear
            With 2 R + 1 knots.

        Raises
        ------
        TypeError, ValueError
            If f is no OffsetTable, or not of 2 R + 1 columns (IA-X-14).

        Examples
        --------
        >>> import numpy as np
        >>> PiecewiseLinear.from_table(OffsetTable(np.asarray([[1.0, 2.0, 4.0]])))(np.asarray([[-7.0, 0.5, 1.0]]))
        array([[[1., 3., 4.]]])
        """
        _check_kind(f, OffsetTable)
        xp = f.check()
        values = xp.matrix_transpose(xp.astype(f.values, widest(xp)))  # (K, H)
        K = values.shape[0]
        at = xp.arange(K, dtype=values.dtype, device=device(values)) - float(K // 2)
        step = values[1:, :] - values[:-1, :]
        steady = xp.isfinite(step)
        slopes = xp.where(steady, step, 0.0)
        # Between entries of which one is infinite the table is that entry.
        lines = xp.where(steady, values[:-1, :] - slopes * at[:-1, None], values[:-1, :] + values[1:, :])
        # On an entry the line to its right goes on, unless that line leads to infinity.
        on_slopes = xp.concat([slopes, xp.zeros_like(values[:1, :])])
        on_lines = xp.concat([xp.where(steady, lines, values[:-1, :]), values[-1:, :]])
        flat = xp.zeros_like(values[:1, :])
        slopes = xp.concat([flat, slopes, flat])
        lines = xp.concat([values[:1, :], lines, values[-1:, :]])
        knots = xp.astype(at, f.dtype)
        return cls(knots, _interleave(xp, slopes, on_slopes), _interleave(xp, lines, on_lines))

    @classmethod
    def from_linear(cls, f: LinearOffset) -> PiecewiseLinear:
        """The same function as a penalty linear in the distance: one knot, at 0.

        Parameters
        ----------
        f : LinearOffset

        Returns
        -------
        PiecewiseLinear

        Raises
        ------
        TypeError, ValueError
            If f is no LinearOffset, or its slopes are not one row of floats (IA-X-14).

        Examples
        --------
        >>> import numpy as np
        >>> PiecewiseLinear.from_linear(LinearOffset(np.asarray([0.5])))(np.asarray([[-2.0, 0.0, 1.0]]))
        array([[[-1. ,  0. , -0.5]]])
        """
        _check_kind(f, LinearOffset)
        xp = f.check()
        slopes = xp.astype(f.slopes, widest(xp))
        flat = xp.zeros_like(slopes)
        knots = xp.zeros((1,), dtype=f.dtype, device=device(slopes))
        return cls(knots, xp.stack([slopes, flat, -slopes]), xp.stack([flat, flat, flat]))

    def __call__(self, relative: Real[Array, "... M N"]) -> Float[Array, "... H M N"]:
        """Evaluate f at every relative position."""
        xp = self.check()
        t = as_float(relative, self.dtype)
        cell = self.cells(t)
        t = xp.astype(t, self.slopes.dtype, copy=False)[..., None]
        bias = take_rows(self.slopes, cell) * t + take_rows(self.intercepts, cell)  # (..., M, N, H)
        return xp.astype(move_axis(bias, -1, -3), self.dtype, copy=False)

    def cells(self, t: Float[Array, "..."]) -> Array:
        """The cell, 0 to 2 K, of every number."""
        xp = array_namespace(self.knots)
        below = xp.searchsorted(self.knots, t)  # the number of knots below t
        return 2 * below + xp.astype(xp.searchsorted(self.knots, t, side="right") > below, below.dtype)

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
        return int(self.slopes.shape[-1])

    @property
    def dtype(self) -> Any:
        """The working dtype of the knots, which is that of the bias."""
        return working_dtype(self.knots)

    def check(self) -> Any:
        """The namespace of the arrays, if they fit together (IA-X-14)."""
        arrays = dict(zip(self._fields, self, strict=True))
        xp = namespace_of(**{f"PiecewiseLinear.{name}": array for name, array in arrays.items()})
        for name, array in arrays.items():
            check_floating(f"PiecewiseLinear.{name}", array)
        K = self.knots.shape[0] if self.knots.ndim else 0
        shapes = {"knots": (K,), "slopes": (2 * K + 1, *self.slopes.shape[1:2]), "intercepts": self.slopes.shape}
        for name, wanted in shapes.items():
            if tuple(arrays[name].shape) != tuple(wanted) or (name == "slopes" and len(wanted) != 2):
                axes = f"(2 K + 1, H), K = {K}" if name == "slopes" else str(tuple(wanted))
                came = tuple(arrays[name].shape)
                raise ValueError(f"`PiecewiseLinear.{name}` must have shape {axes}; got {came} [IA-X-14]")
        own, allowed = dtype_name(self.slopes.dtype), {dtype_name(self.dtype), "float64"}
        if own not in allowed or dtype_name(self.intercepts.dtype) != own:
            raise TypeError(
                f"`PiecewiseLinear` must have slopes and intercepts of one dtype, {' or '.join(sorted(allowed))}; "
                f"got {own} and {dtype_name(self.intercepts.dtype)} [IA-X-14]"
            )
        return xp


BiasFunction: TypeAlias = OffsetMLP | OffsetTable | LinearOffset | BoxMLP | PiecewiseLinear


def _check_kind(f: Any, kind: type) -> None:
    if not isinstance(f, kind):
        raise TypeError(f"`f` must be of the class {kind.__name__}; got {type(f).__name__} [IA-X-14]")


def _interleave(xp: Any, even: Array, odd: Array) -> Array:
    """Rows of both in turn, the first and the last from ``even``: (K + 1, H) and (K, H) to (2 K + 1, H)."""
    K, H = odd.shape
    return xp.concat([xp.reshape(xp.stack([even[:-1, :], odd], axis=1), (2 * K, H)), even[-1:, :]])
