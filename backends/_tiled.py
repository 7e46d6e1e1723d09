"""Attention over query tiles, in the array API standard: what the paths of NumPy, CuPy and PyTorch share.

Rows of the scores do not depend on each other, so a tile of queries is a call of its own. The scores, and the
bias where it is a function, exist for one tile at a time; the arithmetic is the specification's, line for line.
"""

from __future__ import annotations

import math
from typing import Any

from .._attention import attend, prepare, scores, softmax
from .._checks import Call
from .._position_bias import PositionBias
from ._compiled_bias import network_as_lines

__all__ = ["attend_tiled", "rows_within", "slab", "tiles"]


def attend_tiled(
    call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any, *, rows: int, each: Any = None
) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype, ``rows`` queries at a time.

    ``each``, if given, calls the function of a tile with its arguments, in a library's own way.
    """
    if call.M <= rows:
        return attend(call, query, key, value, bias, mask)
    xp = call.xp
    bias = network_as_lines(bias)
    # Over all the queries, and so before the tiles: what no query of one tile attends to, another's may.
    q, k, v, mask = prepare(call, query, key, value, mask)
    outputs, lses = [], []
    for i0, i1 in tiles(call.M, rows):
        tile = call._replace(M=i1 - i0)
        arguments = (tile, q[..., i0:i1, :], k, v, bias, mask, (i0, i1))
        output, lse = _attend_rows(*arguments) if each is None else each(_attend_rows, *arguments)
        outputs.append(output)  # (..., H, i1 - i0, Dv)
        lses.append(lse)
    return xp.concat(outputs, axis=-2), xp.concat(lses, axis=-1)


def _attend_rows(tile: Call, q: Any, k: Any, v: Any, bias: Any, mask: Any, rows: tuple[int, int]) -> tuple[Any, Any]:
    weights, lse = softmax(tile, scores(tile, q, k, slab(bias, *rows), slab(mask, *rows)))
    return tile.xp.matmul(weights, v), lse


def tiles(M: int, rows: int) -> list[tuple[int, int]]:
    """The tiles of M queries; one empty tile if there are none.

    >>> tiles(5, 2), tiles(0, 2)
    ([(0, 2), (2, 4), (4, 5)], [(0, 0)])
    """
    return [(i0, min(i0 + rows, M)) for i0 in range(0, max(M, 1), rows)]


def slab(array: Any, i0: int, i1: int) -> Any:
    """Rows i0 .. i1 - 1 of what broadcasts to (..., H, M, N): a bias, a mask, or None.

    >>> import numpy as np
    >>> slab(np.ones((5, 3)), 1, 3).shape, slab(np.ones((1, 3)), 1, 3).shape
    ((2, 3), (1, 3))
    """
    if array is None or len(array.shape) < 2 or array.shape[-2] == 1:  # one row for all the queries
        return array
    return array.rows(i0, i1) if isinstance(array, PositionBias) else array[..., i0:i1, :]


def rows_within(call: Call, scores_per_tile: int, least: int) -> int:
    """Rows of a tile with about so many scores in all heads and leading axes; never fewer than ``least``."""
    return max(least, scores_per_tile // max(1, math.prod(call.batch) * call.H * call.N))
