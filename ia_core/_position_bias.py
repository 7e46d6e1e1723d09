"""The bias of a call as a function of positions (P11, P12)."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import Array, dtype_name, namespace_of, working_dtype
from ._bias import BoxMLP, EdgeMLP
from ._piecewise import BiasFunction
from ._positions import Grid, check_position_dtype, is_integer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Real

__all__ = ["PositionBias"]


class PositionBias(NamedTuple):
    """The bias as a function of positions, never a matrix unless asked: ``bias_hij = f_h(P_ij)`` (P11, P12).

    Attributes
    ----------
    f : OffsetMLP, OffsetTable, LinearOffset, PiecewiseLinear or BoxMLP
    query_positions : array of shape (..., M), or (..., M, 4) for boxes
        Integer or real. An update between layers (P12) replaces them.
    value_positions : array of shape (..., N), or a Grid for boxes

    Raises
    ------
    TypeError, ValueError
        When used, if the parameters (IA-X-14) or the positions (IA-X-15) do not fit.

    Notes
    -----
    Equations P11 and P12 of arXiv 2509.26015.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import LinearOffset
    >>> bias = PositionBias(LinearOffset(np.asarray([1.0])), np.asarray([0.0, 2.0]), np.arange(3))
    >>> bias.dense()
    array([[[-0., -1., -2.],
            [-2., -1., -0.]]])
    >>> bias.rows(1, 2)
    array([[[-2., -1., -0.]]])
    """

    f: BiasFunction
    query_positions: Real[Array, "..."]
    value_positions: Real[Array, "..."] | Grid

    def dense(self) -> Float[Array, "... H M N"]:
        """The whole bias, in the working dtype of f."""
        self.check()
        return self.f(self.f.offsets(self.query_positions, self.value_positions))

    def rows(self, i0: int, i1: int) -> Float[Array, "... H i1-i0 N"]:
        """Rows i0 .. i1 - 1 of the bias, without the others.

        Raises
        ------
        TypeError, ValueError
            Unless i0 and i1 are integers with 0 <= i0 <= i1 <= M (IA-X-16).
        """
        self.check()
        M = self.shape[-2]
        if not isinstance(i0, Integral) or not isinstance(i1, Integral):
            raise TypeError(f"`rows` takes integers i0 and i1; got {i0}, {i1} [IA-X-16]")
        if not 0 <= i0 <= i1 <= M:
            raise ValueError(f"`rows` must satisfy 0 <= i0 <= i1 <= M = {M}; got {i0}, {i1} [IA-X-16]")
        later = (slice(None),) * (self.f.query_rank - 1)
        return self._replace(query_positions=self.query_positions[(..., slice(i0, i1), *later)]).dense()

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., H, M, N)."""
        rank = self.f.query_rank
        batch = tuple(self.query_positions.shape[:-rank])
        M = self.query_positions.shape[-rank]
        if isinstance(self.value_positions, Grid):
            return (*batch, self.f.heads, M, self.value_positions.y.shape[0] * self.value_positions.x.shape[0])
        batch = _broadcast(batch, tuple(self.value_positions.shape[:-1]))
        return (*batch, self.f.heads, M, self.value_positions.shape[-1])

    @property
    def dtype(self) -> Any:
        """The dtype of the dense bias."""
        return self.f.dtype

    def named_arrays(self) -> Iterator[tuple[str, Array]]:
        """Every array of the bias with a name for error texts."""
        parts = [(f"bias.f.{name}", part) for name, part in zip(self.f._fields, self.f, strict=True)]
        parts += [("bias.query_positions", self.query_positions), ("bias.value_positions", self.value_positions)]
        for name, part in parts:
            if isinstance(part, EdgeMLP | Grid):
                yield from ((f"{name}.{field}", leaf) for field, leaf in zip(part._fields, part, strict=True))
            else:
                yield name, part

    def check(self) -> None:
        """Refuse parameters (IA-X-14) and positions (IA-X-15) that do not fit."""
        if not isinstance(self.f, BiasFunction):
            raise TypeError(f"`bias.f` must be a bias function of ia_core; got {type(self.f).__name__} [IA-X-14]")
        is_box, is_grid = isinstance(self.f, BoxMLP), isinstance(self.value_positions, Grid)
        if is_box != is_grid:
            wanted = "a Grid" if is_box else "an array"
            raise TypeError(
                f"`bias.value_positions` must be {wanted} for {type(self.f).__name__}; "
                f"got {type(self.value_positions).__name__} [IA-X-15]"
            )
        namespace_of(**dict(self.named_arrays()))
        self.f.check()
        self._check_positions()

    def _check_positions(self) -> None:
        least = {"query_positions": self.f.query_rank, "value_positions": 1, "x": 1, "y": 1}
        for name, array in self.named_arrays():
            field = name.rpartition(".")[2]
            if name.startswith("bias.f."):
                continue
            check_position_dtype(name, array)
            shape = tuple(array.shape)
            if array.ndim < least[field]:
                raise ValueError(f"`{name}` must have at least {least[field]} axes; got shape {shape} [IA-X-15]")
            if field in ("x", "y") and array.ndim != 1:
                raise ValueError(f"`{name}` must have one axis; got shape {shape} [IA-X-15]")
            if not is_integer(array) and dtype_name(working_dtype(array)) != dtype_name(self.dtype):
                raise TypeError(
                    f"`{name}` must be integer or {dtype_name(self.dtype)} as f is; got {dtype_name(array.dtype)} "
                    "[IA-X-15]"
                )
        if isinstance(self.f, BoxMLP) and self.query_positions.shape[-1] != 4:
            shape = tuple(self.query_positions.shape)
            raise ValueError(f"`bias.query_positions` must be boxes of shape (..., M, 4); got {shape} [IA-X-15]")
        if not isinstance(self.value_positions, Grid):
            _broadcast(tuple(self.query_positions.shape[:-1]), tuple(self.value_positions.shape[:-1]))


def _broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape of leading axes; not every library has the standard's broadcast_shapes (2025.12) yet."""
    rank = max(len(one), len(other))
    pairs = zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(other)) + other, strict=True)
    shape = []
    for size, size_other in pairs:
        if size != size_other and size != 1 and size_other != 1:
            raise ValueError(
                f"`bias.value_positions` must have leading axes that broadcast with those of query_positions, {one}; "
                f"got {other} [IA-X-15]"
            )
        shape.append(size_other if size == 1 else size)
    return tuple(shape)
