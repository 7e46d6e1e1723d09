"""Numbers for golden vectors: the same for every version of NumPy, and exact in every dtype.

What stays the same is the stream of raw 64-bit words of a bit generator seeded with an integer: that NumPy
guarantees (NEP 19), other than what ``Generator`` makes of the words. The words become numbers by integer
arithmetic and powers of two alone, so that no rounding and no mathematical library takes part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias

from ._case import Case
from ._libraries import numpy_dtype

__all__ = ["Draw"]

SIGNIFICANT = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


class Draw:
    """Draws for one clause in one dtype; what one clause draws has no effect on another.

    Parameters
    ----------
    clause, dtype : str

    Examples
    --------
    >>> bool(np.all(np.abs(Draw("IA-F-01", "bfloat16").numbers(100)) <= 2))
    True
    """

    def __init__(self, clause: str, dtype: str) -> None:
        digest = hashlib.sha256(f"{clause}/{dtype}".encode()).digest()
        self.dtype = dtype
        self.kind = numpy_dtype(dtype)
        self.work = "float64" if dtype == "float64" else "float32"
        self._bits = np.random.PCG64(int.from_bytes(digest[:8], "little"))

    def words(self, *shape: int) -> np.ndarray:
        """Raw words, uint64."""
        count = math.prod(shape)
        return np.asarray([self._bits.random_raw() for _ in range(count)], dtype=np.uint64).reshape(shape)

    def numbers(self, *shape: int, dtype: str | None = None) -> np.ndarray:
        """Evenly from [-2, 2), with all the significant bits of the dtype."""
        dtype = dtype or self.dtype
        p = SIGNIFICANT[dtype]
        signed = (self.words(*shape) >> np.uint64(63 - p)).astype(np.int64) - 2**p
        return exactly(np.ldexp(signed.astype(np.float64), 1 - p), dtype)

    def below(self, n: int, *shape: int) -> np.ndarray:
        """Integers from 0 to n - 1."""
        return (self.words(*shape) % np.uint64(n)).astype(np.int64)

    def eighths(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Multiples of 1/8 from low to high, in the working dtype; for positions."""
        return (low + self.below(8 * (high - low) + 1, *shape) / 8).astype(self.work)

    def some(self, *shape: int) -> np.ndarray:
        """A mask that keeps about 3 of 5 keys, and one in every row."""
        mask = self.below(5, *shape) < 3
        keep = self.below(shape[-1], *shape[:-1])
        np.put_along_axis(mask, keep[..., None], True, axis=-1)
        return mask

    def case(
        self,
        *,
        batch: Sequence[int] = (1,),
        H: int = 2,
        Hk: int | None = None,
        M: int = 3,
        N: int = 5,
        D: int = 4,
        Dv: int = 4,
        bias: Sequence[int] | bool = False,
        mask: Sequence[int] | bool = False,
        scale: float | None = None,
    ) -> Case:
        """A call that needs few features unless told; ``bias`` and ``mask`` are shapes, or True for (..., H, M, N)."""
        Hk = H if Hk is None else Hk
        full = (*batch, H, M, N)
        query, key = self.numbers(*batch, H, M, D), self.numbers(*batch, Hk, N, D)
        value = self.numbers(*batch, Hk, N, Dv)
        dense = None if bias is False else self.numbers(*(full if bias is True else bias))
        allowed = None if mask is False else self.some(*(full if mask is True else mask))
        return Case(query, key, value, dense, allowed, scale)

    def cast(self, numbers: Any) -> np.ndarray:
        """Numbers in the dtype, rounded by way of float32, which is the same everywhere."""
        return np.asarray(numbers, dtype=np.float64).astype(np.float32).astype(self.kind)

    # Bias functions: parameters in the working dtype, multiples of 1/64, so that f has few bits.

    def parameters(self, *shape: int) -> np.ndarray:
        """Parameters of a bias function."""
        return ((self.below(257, *shape) - 128) / 64).astype(self.work)

    def mlp(self, H: int, hidden: int = 5) -> OffsetMLP:
        """A network of one offset."""
        p = self.parameters
        return OffsetMLP(p(hidden) / 4, p(hidden), p(hidden, H) / 2, p(H))

    def edge(self, H: int) -> EdgeMLP:
        """A network of the offsets of two edges."""
        p = self.parameters
        return EdgeMLP(p(2, 4) / 4, p(4), p(4, H) / 2, p(H))

    def box(self, H: int) -> BoxMLP:
        """A bias of boxes."""
        return BoxMLP(self.edge(H), self.edge(H))

    def table(self, H: int, R: int = 2) -> OffsetTable:
        """A table."""
        return OffsetTable(self.parameters(H, 2 * R + 1))

    def linear(self, H: int) -> LinearOffset:
        """Slopes, none negative."""
        return LinearOffset(np.abs(self.parameters(H)) / 4)

    def grid(self, rows: int, columns: int) -> Grid:
        """Lines of a grid of pixels."""
        return Grid(np.arange(columns, dtype=self.work), np.arange(rows, dtype=self.work))

    def positioned(self, case: Case, f: Any, queries: Any = None, values: Any = None) -> Case:
        """The case with a position bias; by default the positions are 0, 1, 2, ..."""
        queries = np.arange(case.query.shape[-2]) if queries is None else queries
        values = np.arange(case.key.shape[-2]) if values is None else values
        return case.but(bias=PositionBias(f, queries, values))


def exactly(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers in a dtype that holds them."""
    found = np.asarray(numbers).astype(numpy_dtype(dtype))
    if not np.array_equal(found.astype(np.float64), numbers, equal_nan=True):
        raise ValueError(f"numbers of a vector must be {dtype} [IA-X-24]")
    return found
