"""A bias of whole positions that go on by one step: along a diagonal of its matrix all numbers are the same.

Positions ``p_i = p_0 + i s`` and ``t_j = t_0 + j s`` have M + N - 1 offsets, and the bias as many numbers for a head.
With the queries in reverse each row begins one number after the row before, so that rows of the matrix are a view of
these numbers, whose strides are 1 and 1, and nothing is copied.

==========  ================  ===============================================================
array       shape             meaning
==========  ================  ===============================================================
offsets     (M + N - 1,)      t_0 - p_{M-1}, and one step more each
diagonals   (H, M + N - 1)    the bias at these
turned      (H, i1 - i0, N)   the bias of the queries i1 - 1, ..., i0, or what is added to it
==========  ================  ===============================================================
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["add_along", "offsets_in_steps", "turned"]

# Whole numbers that far from 0 have differences that float64 holds.
EXACT = 2.0**52


def offsets_in_steps(query_positions: Tensor, value_positions: Tensor) -> Tensor | None:
    """The offsets in order, of positions (M,) and (N,) in float64; None if these are not whole or have other steps.

    >>> offsets_in_steps(torch.arange(2.0), torch.arange(3.0))
    tensor([-1.,  0.,  1.,  2.])
    >>> offsets_in_steps(torch.arange(2.0), torch.asarray([0.0, 2.0])) is None
    True
    """
    places = [query_positions, value_positions]
    if not all(at.shape[0] for at in places):
        return None
    if not all(bool(((at == torch.floor(at)) & (at.abs() <= EXACT)).all()) for at in places):  # no nan is
        return None
    steps = torch.cat([at[1:] - at[:-1] for at in places])
    if not bool((steps == steps[:1]).all()):
        return None
    return torch.cat([value_positions[:1] - query_positions.flip(0), value_positions[1:] - query_positions[0]])


def turned(diagonals: Tensor, rows: tuple[int, int], N: int) -> Tensor:
    """A view of the rows i0 .. i1 - 1, the last of them first.

    >>> turned(torch.arange(4.0)[None, :], (0, 2), 3)
    tensor([[[0., 1., 2.],
             [1., 2., 3.]]])
    """
    (i0, i1), (H, length) = rows, diagonals.shape
    first = diagonals.storage_offset() + (length - N + 1 - i1) * diagonals.stride(1)
    return diagonals.as_strided((H, i1 - i0, N), (diagonals.stride(0), *diagonals.stride()[1:] * 2), first)


def add_along(diagonals: Tensor, rows: tuple[int, int], d_turned: Tensor) -> None:
    """Add to each diagonal (H, M + N - 1) what its numbers in ``d_turned`` (H, i1 - i0, N) add up to.

    >>> sums = torch.zeros(1, 4)
    >>> add_along(sums, (0, 2), torch.ones(1, 2, 3))
    >>> sums
    tensor([[1., 2., 2., 1.]])
    """
    H, many, N = d_turned.shape
    width = many + N - 1
    # Each row one number longer than in what it is read as: row r then begins r numbers later.
    skewed = pad(d_turned, (0, many)).reshape(H, many * (width + 1))[:, : many * width].reshape(H, many, width)
    first = diagonals.shape[1] - N + 1 - rows[1]
    diagonals[:, first : first + width] += skewed.sum(1, dtype=diagonals.dtype)
