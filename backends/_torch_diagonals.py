"""A bias of whole positions that go on by one step: along a diagonal of its matrix all numbers are the same.

Positions ``p_i = p_0 + i s`` and ``t_j = t_0 + j s`` have M + N - 1 offsets, and the bias as many numbers for a head.
With the queries in reverse each row begins one number after the row before, so that rows of the matrix are a view of
these numbers, whose strides are 1 and 1, and nothing is copied.

==========  ================  ===============================================================
array       shape             meaning
==========  ================  ===============================================================
offsets     (M + N - 1,)      t_0 - p_{M-1}, and one step more each
diagonals   (H, M + N - 1)    numbers at these
turned      (H, i1 - i0, N)   those of the queries i1 - 1, ..., i0 and of all values
==========  ================  ===============================================================
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["add_along", "diagonals_of", "offsets_in_steps", "turned"]

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
    # Neither nan nor an infinity is whole here.
    if not all(bool(((at == torch.floor(at)) & (at.abs() <= EXACT)).all()) for at in places):
        return None
    steps = torch.cat([at[1:] - at[:-1] for at in places])
    if not bool((steps == steps[:1]).all()):
        return None
    return torch.cat([value_positions[:1] - query_positions.flip(0), value_positions[1:] - query_positions[0]])


def diagonals_of(rows: tuple[int, int], N: int, length: int) -> slice:
    """Which of the diagonals the rows i0 .. i1 - 1 have.

    >>> diagonals_of((0, 2), 3, 5)
    slice(1, 5, None)
    """
    M = length - N + 1
    return slice(M - rows[1], M - rows[0] + N - 1)


def turned(diagonals: Tensor, rows: tuple[int, int], N: int) -> Tensor:
    """A view of the rows i0 .. i1 - 1, the last of them first.

    >>> turned(torch.arange(5.0)[None, :], (0, 2), 3)
    tensor([[[1., 2., 3.],
             [2., 3., 4.]]])
    """
    part = diagonals[:, diagonals_of(rows, N, diagonals.shape[1])]
    head, step = part.stride()
    return part.as_strided((part.shape[0], rows[1] - rows[0], N), (head, step, step))


def add_along(numbers: Tensor) -> Tensor:
    """The sums (H, rows + N - 1) along the diagonals of turned rows (H, rows, N), in float64.

    >>> add_along(torch.ones(1, 2, 3))
    tensor([[1., 2., 2., 1.]], dtype=torch.float64)
    """
    # Row r and column j are on diagonal r + j, and so are column r and row j.
    numbers = numbers if numbers.shape[1] <= numbers.shape[2] else numbers.mT
    H, rows, columns = numbers.shape
    width = rows + columns - 1
    # Rows of width + 1 numbers, read as rows of width: each begins one column after the row before.
    padded = pad(numbers, (0, rows)).reshape(H, rows * (width + 1))
    return padded[:, : rows * width].reshape(H, rows, width).sum(1, dtype=torch.float64)
