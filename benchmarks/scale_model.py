"""What attention over several devices computes, moves and holds, as formulas.

M queries, N keys, H query heads of Hk key heads, D and Dv wide, B leading elements, on P devices; numbers of ``item``
bytes, working precision of ``work`` bytes. All results are for one device.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

__all__ = ["Costs", "Problem", "chunked", "heads", "ring"]

# Rows of a tile of scores in JAX, and how many arrays of a tile's scores are alive at a time: forward, one more with a
# position bias; with gradients.
TILE_ROWS, FORWARD_ARRAYS, BACKWARD_ARRAYS = 128, 2, 4


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes of a call."""

    M: int
    N: int
    H: int
    D: int
    Hk: int = 0
    Dv: int = 0
    B: int = 1
    item: int = 4
    work: int = 4
    # Bytes of a key's position that travel with it: 0 without a position bias.
    position: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "Hk", self.Hk or self.H)
        object.__setattr__(self, "Dv", self.Dv or self.D)

    @property
    def products(self) -> int:
        """Flops of the two products of matrices: 2 B H M N (D + Dv)."""
        return 2 * self.B * self.H * self.M * self.N * (self.D + self.Dv)

    def of_keys(self, item: int) -> int:
        """Bytes of key and value: B Hk N (D + Dv) item."""
        return self.B * self.Hk * self.N * (self.D + self.Dv) * item

    @property
    def of_queries(self) -> int:
        """Bytes of the queries: B H M D item."""
        return self.B * self.H * self.M * self.D * self.item

    @property
    def of_output(self) -> int:
        """Bytes of the output and its lse: B H M (Dv item + work)."""
        return self.B * self.H * self.M * (self.Dv * self.item + self.work)


class Costs(NamedTuple):
    """Of one device: flops of products of matrices, bytes sent, bytes of what is given and returned, bytes besides."""

    flops: float
    sent: float
    held: float
    scratch: float

    @property
    def memory(self) -> float:
        """Bytes altogether."""
        return self.held + self.scratch


def ring(problem: Problem, devices: int, *, backward: bool = False) -> Costs:
    """Queries and keys sharded; keys travel.

    Forward a device sends its block P - 1 times: (P - 1) / P times the keys and values. Backward the blocks travel
    once more, and their gradients, in the working precision, P times: over the whole keys and values once. Backward the
    block's state is computed anew, the scores of a tile once more, and then four products give gradients:
    (D + Dv) + D + 2 (D + Dv).
    """
    p, P = problem, devices
    block = (p.of_keys(p.item) + p.N * p.position) / P
    held = (p.of_queries + p.of_output + p.of_keys(p.item) + (p.N + p.M) * p.position) / P
    state = p.B * p.H * p.M * (p.Dv + 2) * p.work / P
    two = 2 if P > 1 else 0  # a block at hand and one on its way; alone a device computes with what it was given
    sent, flops, scratch = (P - 1) * block, p.products / P, two * block + 2 * state + _tile(p, P, p.N // P, backward)
    if backward:
        gradients = (p.of_keys(p.work) + p.N * p.position) / P
        # Of two devices the block's one pass backward is that of forward, and a compiler keeps it.
        sent += ((P - 1) * block if P > 2 else 0) + (P * gradients if P > 1 else 0)
        flops *= 1 + (4 * p.D + 3 * p.Dv) / (p.D + p.Dv)
        held += (p.of_queries + p.of_keys(p.item) - p.of_output) / P
        scratch += 3 * gradients + 2 * state + p.of_queries / P
    return Costs(flops, sent, held, scratch)


def _tile(p: Problem, split_rows: int, columns: int, backward: bool, split_heads: int = 1) -> float:
    """Bytes of the tiles of scores that are alive together."""
    arrays = BACKWARD_ARRAYS if backward else FORWARD_ARRAYS + (1 if p.position else 0)
    return arrays * p.B * p.H // split_heads * min(TILE_ROWS, p.M // split_rows) * columns * p.work


def heads(problem: Problem, devices: int, *, backward: bool = False) -> Costs:
    """Heads sharded: nothing travels, and every device holds whole sequences of its heads."""
    p, P = problem, devices
    if p.Hk % P:
        raise ValueError(f"{p.Hk} key heads cannot be split over {P} devices")
    held = (p.of_queries + p.of_output + p.of_keys(p.item)) / P + (p.M + p.N) * p.position
    scratch = _tile(p, 1, p.N, backward, P) + p.B * p.H * p.M * (p.Dv + 1) * p.work / P
    flops = p.products / P
    if backward:  # scores once more, and four products
        flops *= (4 * p.D + 3 * p.Dv) / (p.D + p.Dv)
        held += (p.of_queries + p.of_keys(p.item) - p.of_output) / P
    return Costs(flops, 0.0, held, scratch)


def chunked(problem: Problem, devices: int, m: int, n: int) -> Costs:
    """Blocks of m queries and n keys, one after another on each of P workers (Dask, Cubed).

    ``sent`` is what all tasks of a worker read: each pair of blocks both of its operands, and the states of N / n key
    blocks, written once and read once. ``held`` is one pair with its state; whole arrays need not fit anywhere.
    """
    p, P = problem, devices
    pairs = -(-p.M // m) * -(-p.N // n)
    pair = p.of_queries * m / p.M + p.of_keys(p.item) * n / p.N + (m + n) * p.position
    state = p.B * p.H * m * (p.Dv + 2) * p.work
    return Costs(p.products / P, pairs * (pair + 2 * state) / P, pair + state, 8 * min(2**19, p.B * p.H * m * n))
