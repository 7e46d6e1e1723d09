"""What the Pallas kernels for JAX are given: sizes, arrays that fill whole tiles, and which tiles take which bias.

==========  =============================================================================================
array       shape
==========  =============================================================================================
query       (B, H, M, D), zeros beyond the ends
key, value  (B, Hk, N, D) and (B, Hk, N, Dv), likewise
positions   (B or 1, M) and (B or 1, N), beyond the end the last one, which is as finite as it is
knots       (K,), infinite beyond the last
tables      (H, 2 K + 1): the lines of the cells of :class:`ia_core.PiecewiseLinear`
over        a mask or a matrix, (B or 1, H or 1, M or 1, N or 1)
==========  =============================================================================================

M and N are multiples of a tile, D and Dv powers of 2. The offsets of a tile of sorted positions span little, so
most tiles have few knots, and many have none. Before a kernel runs, the tiles of each of its blocks are put in order of
what their bias takes:

==========  ==================================  ========================================================
kind        knots in a tile                     how the bias is found
==========  ==================================  ========================================================
``FOLDED``  none, far from 0, of a size         one line, as a number for each column and one for each row
            that is moderate
1 or 2      up to so many                       the first cell's line, replaced beyond each knot
4 or 8      up to so many                       likewise
``ANY``     any number                          likewise, in a loop
``SEARCH``  any, an offset that is not finite   a search of the knots for every offset
==========  ==================================  ========================================================

A kernel has a loop for each kind: in one loop with a branch a compiler lays the scores out for both sides.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["ANY", "FOLDED", "SEARCH", "Lines", "Order", "Over", "Plan", "Rows", "Tables", "Tiling", "order_of"]

# In place of a number of knots: none, and far from 0; any number; any number, and offsets that are not finite.
FOLDED, ANY, SEARCH = -1, -2, -3
LEAST = 16  # numbers along each side of a product
# Of a bias: folded, its two parts are rounded apart, to a fraction of 2^-24 of them. In float32 that would be seen.
LARGEST_FOLDED = {"float16": 2.0**8, "bfloat16": 2.0**9}


class Rows(NamedTuple):
    """Query, key and value."""

    query: Any
    key: Any
    value: Any


class Lines(NamedTuple):
    """A bias that is a function of one offset, in the dtype of the scores."""

    queries: Any  # (B or 1, M)
    values: Any  # (B or 1, N)
    knots: Any  # (K,)
    slopes: Any  # (H, 2 K + 1)
    intercepts: Any


class Over(NamedTuple):
    """What lies over the scores: a bias that is a matrix, and a mask."""

    bias: Any
    mask: Any


class Tables(NamedTuple):
    """``Lines`` as a kernel reads them."""

    queries: Any
    values: Any
    knots: Any  # (length,): infinite beyond the knots
    slopes: Any  # (H, cells): 0 beyond the cells
    intercepts: Any


class Order(NamedTuple):
    """The tiles of each block, kind by kind, each a number, the knots below it, and the knots in it."""

    tile: Any  # (B or 1, blocks, tiles)
    first: Any
    count: Any
    ends: Any  # (B or 1, blocks, kinds): where each kind ends


class Tiling(NamedTuple):
    """Queries and keys of a tile, warps of a program, and loads under way at a time."""

    rows: int
    columns: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """What is known of a call before any array is: it decides what is compiled.

    Attributes
    ----------
    batch, heads, key_heads, M, N, D, Dv : int
        As they are given, before they are padded.
    knots : int or None
        Of the bias; None for no lines.
    scale : float
    smooth : bool
        Whether the lines meet at every knot, so that its own cell need not be looked at.
    query, work : str
        dtypes of the rows and of scores and sums.
    interpret : bool
        Whether the kernels run as operations of XLA, one program after another.
    """

    batch: int
    heads: int
    key_heads: int
    M: int
    N: int
    D: int
    Dv: int
    knots: int | None
    scale: float
    smooth: bool
    query: str
    work: str
    interpret: bool = False

    @property
    def half(self) -> bool:
        return self.query in ("float16", "bfloat16")

    @property
    def group(self) -> int:
        """Query heads for each key head."""
        return self.heads // self.key_heads

    @property
    def widths(self) -> tuple[int, int]:
        """D and Dv as powers of 2."""
        return max(LEAST, power_above(self.D)), max(LEAST, power_above(self.Dv))

    def tiling(self, kernel: str) -> Tiling:
        """Sizes for one of the kernels ``forward``, ``queries``, ``keys`` and ``bias``."""
        if self.interpret:
            return Tiling(32, 32, 4, 1)
        width = max(self.widths)
        if not self.half:
            return Tiling(64, 32, 4, 2) if width <= 64 else Tiling(32, 32, 4, 1)
        if width > 128:
            return Tiling(64, 32, 4, 2)
        return _HALVES[kernel, width > 64]

    @property
    def padded(self) -> tuple[int, int]:
        """M and N as multiples of every kernel's tile."""
        tilings = [self.tiling(kernel) for kernel in ("forward", "queries", "keys", "bias")]
        rows, columns = (max(tiling[at] for tiling in tilings) for at in (0, 1))
        return up_to(self.M, rows), up_to(self.N, columns)

    @property
    def parts(self) -> int:
        """Halves that a weight is given to the products as a sum of; 0: it stays as it is, as values then do.

        Two halves leave 2^-18 of a weight in bfloat16, 64 units of float32. Sums of float32 may be off by more from 64
        terms on, (2 c_N + 8) units; below, three leave nothing.
        """
        if not self.half:
            return 0
        return 3 if self.query == "bfloat16" and min(self.M, self.N) < 64 else 2

    @property
    def gradient_parts(self) -> int:
        """The same for the gradients of scores, of which float16 would lose the largest and the smallest."""
        return 0 if self.query == "float16" else self.parts

    @property
    def shift(self) -> int:
        """Weights are larger by this power of 2: float16 loses what is below 2^-24, and weights are at most 1."""
        return 14 if self.query == "float16" else 0

    @property
    def kinds(self) -> tuple[int, ...]:
        """Of tiles, in their order; a number is the most knots."""
        return (FOLDED, 2, 8, ANY, SEARCH) if self.smooth else (FOLDED, 1, 4, ANY, SEARCH)

    @property
    def steps(self) -> int:
        """Of a search of the knots."""
        return max(1, int(self.knots or 0).bit_length())

    @property
    def table(self) -> tuple[int, int]:
        """Lengths of the knots and of the lines of a head: a loop over so many knots may look beyond the last."""
        length = max(2**self.steps, int(self.knots or 0) + 10)
        return length, power_above(2 * length + 1)

    def pad_rows(self, rows: Rows) -> Rows:
        M, N = self.padded
        D, Dv = self.widths
        sizes = ((M, D), (N, D), (N, Dv))
        return Rows(*(_pad(array, size) for array, size in zip(rows, sizes, strict=True)))

    def pad_over(self, over: Over) -> Over:
        M, N = self.padded
        padded = []
        for array in over:
            if array is not None:
                m, n = array.shape[-2:]
                array = _pad(array, (1 if m == 1 else M, 1 if n == 1 else N))
            padded.append(array)
        return Over(*padded)

    def tables_of(self, lines: Lines) -> Tables:
        M, N = self.padded
        queries = jnp.pad(lines.queries, ((0, 0), (0, M - self.M)), mode="edge")
        values = jnp.pad(lines.values, ((0, 0), (0, N - self.N)), mode="edge")
        length, cells = self.table
        knots = jnp.pad(lines.knots, (0, length - lines.knots.shape[0]), constant_values=math.inf)
        slopes, intercepts = (_pad(table, (table.shape[0], cells)) for table in (lines.slopes, lines.intercepts))
        return Tables(queries, values, knots, slopes, intercepts)


def order_of(plan: Plan, tables: Tables, kernel: str) -> Order:
    """The order of tiles for one of the kernels; those of ``keys`` have blocks of keys and tiles of queries."""
    tiling = plan.tiling(kernel)
    p_least, p_most = _ends(tables.queries, tiling.rows)  # (B or 1, tiles of queries)
    x_least, x_most = _ends(tables.values, tiling.columns)
    least = x_least[:, None, :] - p_most[:, :, None]  # (B, tiles of queries, tiles of keys)
    most = x_most[:, None, :] - p_least[:, :, None]
    if kernel == "keys":
        least, most = least.mT, most.mT
    knots = tables.knots[: plan.knots]
    first = jnp.searchsorted(knots, least).astype(jnp.int32)
    # A knot counts where an offset may lie on it; where lines meet there, only where one may lie beyond it.
    count = jnp.searchsorted(knots, most, side="left" if plan.smooth else "right").astype(jnp.int32) - first
    _, few, several, _, _ = plan.kinds
    # Twice as near as far at most: positions counted from one of the tile's are then no larger than its offsets are.
    far = jnp.where(least > 0.0, 2.0 * least >= most, 2.0 * most <= least)
    slope, line = (jnp.max(jnp.abs(table), 0)[2 * first] for table in (tables.slopes, tables.intercepts))
    size = slope * jnp.maximum(jnp.abs(least), jnp.abs(most)) + line
    folded = (count == 0) & far & (size < LARGEST_FOLDED.get(plan.query, 0.0))
    kind = (~folded).astype(jnp.int32) + (count > few) + (count > several)
    kind = jnp.where((jnp.abs(least) < jnp.inf) & (jnp.abs(most) < jnp.inf), kind, 4)
    # Folded tiles on the same line follow each other, so that a sum over them is written and never read.
    by_line = jnp.argsort(jnp.where(kind == 0, first, 0), stable=True)
    order = jnp.take_along_axis(by_line, jnp.argsort(jnp.take_along_axis(kind, by_line, -1), stable=True), -1)
    first, count, kind = (jnp.take_along_axis(array, order, -1) for array in (first, count, kind))
    ends = jnp.sum(kind[..., None] <= jnp.arange(5), axis=-2, dtype=jnp.int32)
    return Order(order.astype(jnp.int32), first, count, ends)


def _ends(positions: Any, size: int) -> tuple[Any, Any]:
    tiles = positions.reshape(positions.shape[0], -1, size)
    return jnp.min(tiles, -1), jnp.max(tiles, -1)


def _pad(array: Any, sizes: tuple[int, int]) -> Any:
    """Zeros, or False, at the ends of the last two axes."""
    more = [(0, 0)] * (array.ndim - 2) + [(0, size - own) for size, own in zip(sizes, array.shape[-2:], strict=True)]
    return array if not any(after for _, after in more) else jnp.pad(array, more)


def up_to(number: int, step: int) -> int:
    return -(-number // step) * step


def power_above(number: int) -> int:
    """The first power of 2 that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def on_platform(function: Any, plan: Plan, *arrays: Any) -> Any:
    """``function(plan, *arrays)`` where it will run: interpreted on a CPU, compiled elsewhere."""
    interpreted = functools.partial(function, plan._replace(interpret=True))
    return jax.lax.platform_dependent(*arrays, cpu=interpreted, default=functools.partial(function, plan))


_HALVES = {
    ("forward", False): Tiling(64, 128, 4, 3),
    ("queries", False): Tiling(64, 64, 4, 3),
    ("keys", False): Tiling(64, 64, 4, 3),
    ("bias", False): Tiling(64, 64, 4, 2),
    ("forward", True): Tiling(128, 64, 8, 3),
    ("queries", True): Tiling(64, 64, 4, 2),
    ("keys", True): Tiling(64, 64, 4, 2),
    ("bias", True): Tiling(64, 64, 4, 2),
}
