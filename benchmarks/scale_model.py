"""What attention over several devices computes, moves and holds, as formulas.

M queries, N keys, H query heads of Hk key heads, D and Dv wide, B leading elements, on P devices; numbers of ``item``
bytes, working precision of ``work`` bytes. All results are for one device.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

__all__ = ["Costs", "Problem", "chunked", "heads", "ring"]

# Rows of a tile of scores in JAX, and arrays of a tile's scores alive together: forward the scores and their
# exponentials; with gradients scores, weights, and the gradients of both.
TILE_ROWS, FORWARD_ARRAYS, BACKWARD_ARRAYS = 128, 2, 4
# Pieces of a block, and the fewest keys of one.
PIECES, LEAST_KEYS = 8, 128
# States that one task of Dask merges (SPLIT_EVERY of backends/_dask.py), and how many arrays like one a merge makes.
MERGED, MERGE_ARRAYS = 4, 3


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
    # Bytes of a key's position that travel with it, and hidden units of the network of offsets: 0 without one.
    position: int = 0
    hidden: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "Hk", self.Hk or self.H)
        object.__setattr__(self, "Dv", self.Dv or self.D)

    @property
    def products(self) -> int:
        """Flops of the two products of matrices: 2 B H M N (D + Dv)."""
        return 2 * self.B * self.H * self.M * self.N * (self.D + self.Dv)

    @property
    def of_network(self) -> int:
        """Flops of the products of the network behind a position bias: 2 M N H hidden."""
        return 2 * self.M * self.N * self.H * self.hidden

    @property
    def of_offsets(self) -> int:
        """Flops of the products for gradients of the network's first layer, whatever the heads: 4 M N hidden."""
        return 4 * self.M * self.N * self.hidden

    def parameters(self, heads: int) -> int:
        """Bytes of the network's parameters: its first layer, and the second one for so many heads."""
        return (2 * self.hidden + (self.hidden + 1) * heads) * self.item if self.hidden else 0

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
    """Of one device: flops of products of matrices, bytes sent, bytes of what is given and returned, bytes besides.

    ``reduced`` are bytes of the results of sums over the devices (all-reduce), of which none is in ``sent``.
    """

    flops: float
    sent: float
    held: float
    scratch: float
    reduced: float = 0.0

    @property
    def memory(self) -> float:
        """Bytes altogether."""
        return self.held + self.scratch


def ring(problem: Problem, devices: int, *, backward: bool = False) -> Costs:
    """Queries and keys sharded; keys travel, in pieces.

    Forward a device sends its block P - 1 times: (P - 1) / P times the keys and values. Backward the blocks travel
    once more, and their gradients, in the working precision, P times: over the whole keys and values once. Backward
    the state of a tile is computed anew, and four products give gradients: (D + Dv) + 2 (D + Dv). Those of the network
    are as many, and two more give the gradients of its first layer.

    Besides what is given and returned stand: the output in the working precision where it is rounded, the two parts of
    its lse, the piece at hand, the one that comes, and the tiles of scores. With gradients: the output and its
    cotangent, the gradients in the working precision where they are rounded; of a piece also the sum of its gradients
    and what a tile adds to it; a tile's queries and cotangent, which alone do not become less with more devices.
    """
    p, P = problem, devices
    n = p.N // P // pieces(p.N // P)
    rows = min(TILE_ROWS, p.M // P)
    block = (p.of_keys(p.item) + p.N * p.position) / P
    held = (p.of_queries + p.of_output + p.of_keys(p.item) + (p.N + p.M) * p.position) / P
    output, vector = p.B * p.H * p.M * p.Dv * p.work / P, p.B * p.H * p.M * p.work / P
    widened = _share(p, n) if p.work != p.item or p.H != p.Hk else 0
    travelling = 2 if P > 1 else 1
    sent, flops = (P - 1) * block, (p.products + p.of_network) / P
    scratch = (0 if p.work == p.item else output) + 2 * vector + travelling * block * n * P / p.N + widened
    scratch += _tile(p, rows, n, backward)
    if backward:
        gradients = (p.of_keys(p.work) + p.N * p.position) / P
        sent += (P - 1) * block + (P * gradients if P > 1 else 0)
        flops = (4 * p.products + 4 * p.of_network + p.of_offsets) / P
        held += (p.of_queries + p.of_keys(p.item) + (p.N + p.M) * p.position - p.of_output) / P
        scratch += 2 * output + vector - (0 if p.work == p.item else output)
        scratch += 2 * gradients * n * P / p.N + p.B * p.H * rows * (p.D + p.Dv) * p.work
        if p.work != p.item:  # sums that are rounded at the end
            scratch += p.of_queries * p.work / p.item / P + gradients
    return Costs(flops, sent, held, scratch, p.parameters(p.H) if backward else 0.0)


def pieces(keys: int) -> int:
    """Of how many pieces a device's keys are."""
    return max(c for c in range(1, PIECES + 1) if keys % c == 0 and (c == 1 or keys // c >= LEAST_KEYS))


def _share(p: Problem, n: int) -> float:
    """Bytes of n keys and values in the working precision, once for each query head."""
    return p.B * p.H * n * (p.D + p.Dv) * p.work


def _tile(p: Problem, rows: int, columns: int, backward: bool) -> float:
    """Bytes of what is alive together of a tile of scores, and of the network behind a position bias."""
    of_scores = p.B * p.H
    each = (BACKWARD_ARRAYS if backward else FORWARD_ARRAYS) * of_scores
    if p.hidden and not backward:
        each += max(of_scores, p.hidden)
    elif p.hidden:
        # The bias beside the hidden units; or, when the attention is done, these and their gradients.
        each = max(each + of_scores + p.hidden, 2 * of_scores + 2 * p.hidden) + 1
    return each * rows * columns * p.work


def heads(problem: Problem, devices: int, *, backward: bool = False, batch: bool = False, mapped: bool = True) -> Costs:
    """Heads sharded, or the batch: nothing travels, and every device holds whole sequences of its heads.

    A position bias belongs to the heads: devices that split the batch compute all of it. ``mapped`` is the call under
    shard_map, which sums the gradients of what every device has once, the positions and those parameters of the network
    that count no heads, of the batch all. Where the compiler splits the call it sums in every tile: of heads the
    gradients of the hidden units, of the batch those of the bias. The memory is that under shard_map.
    """
    p, P = problem, devices
    size, what = (p.B, "leading elements") if batch else (p.Hk, "key heads")
    if size % P:
        raise ValueError(f"{size} {what} cannot be split over {P} devices")
    held = (p.of_queries + p.of_output + p.of_keys(p.item)) / P + (p.M + p.N) * p.position
    own = p.H if batch else p.H // P  # heads whose bias a device computes
    flops, network, reduced = p.products / P, p.of_network * own / p.H, 0.0
    if backward:  # scores once more, and four products
        flops *= (4 * p.D + 3 * p.Dv) / (p.D + p.Dv)
        # Of one head the gradients of the hidden units are no product of matrices.
        network = network * (4 if own > 1 else 3) + p.of_offsets
        held += (p.of_queries + p.of_keys(p.item) - p.of_output) / P + (p.M + p.N) * p.position
        if mapped:
            reduced = (p.M + p.N) * p.position + p.parameters(p.H if batch else 0)
        elif p.hidden and P > 1:
            reduced = p.M * p.N * (p.H if batch else p.hidden) * p.work
    return Costs(flops + network, 0.0, held, _scratch_of_heads(p, P, own, backward), reduced)


def _scratch_of_heads(p: Problem, P: int, own: int, backward: bool) -> float:
    """Bytes besides what is given and returned, of a device that computes the bias of ``own`` heads.

    Forward stand a tile's scores, and the output once more where several heads join their tiles; with a network its
    units and the bias, and values laid out anew (of one head the keys); keys and values once for each query head where
    they are grouped. Backward stand the cotangent of the output and what a tile adds to the gradients of all keys, of
    which a half is done with when the hidden units and their gradients are alive: twice as many units, and once more of
    a single head of a single element.
    """
    output, vector = p.B * p.H * p.M * p.Dv * p.work / P, p.B * p.H * p.M * p.work / P
    tile, scores, of_keys = min(TILE_ROWS, p.M) * p.N * p.work, p.B * p.H // P, _share(p, p.N) / P
    if not backward:
        joined = output + vector if own > 1 else 0
        attention, network = FORWARD_ARRAYS * scores * tile + joined, 0.0
        if p.hidden:
            width = p.Dv if own > 1 else p.D
            network = (p.hidden + own) * tile + of_keys * width / (p.D + p.Dv) + vector
        return max(attention, network) + (0 if p.H == p.Hk else of_keys)
    attention, network = BACKWARD_ARRAYS * scores * tile + of_keys, 0.0
    if p.hidden:
        attention += (own + p.hidden + 1) * tile
        units = 2 * p.hidden + 1 if scores > 1 else 3 * p.hidden
        network = (scores + own + units) * tile + of_keys / 2
    return max(attention, network) + output + 3 * vector


def chunked(problem: Problem, devices: int, m: int, n: int) -> Costs:
    """Blocks of m queries and n keys, one after another on each of P workers (Dask, Cubed).

    ``sent`` is what all tasks of a worker read and write: each pair of blocks both of its operands, and every state of
    the tree, written once and but for the last read once. A worker that goes through the tree depth first holds at a
    time a pair with its state and a tile of scores; or, in a merge, the states that come, those joined and what the
    merge makes, and at each other level the states that wait. Whole arrays need not fit anywhere.
    """
    p, P = problem, devices
    rows, columns = -(-p.M // m), -(-p.N // n)
    pair = p.of_queries * m / p.M + p.of_keys(p.item) * n / p.N + (m + n) * p.position
    state = p.B * p.H * m * (p.Dv + 2) * p.work
    levels = [columns]
    while levels[-1] > 1:
        levels.append(-(-levels[-1] // MERGED))
    waiting = (MERGED - 1) * max(0, len(levels) - 2)
    together = (min(MERGED, columns) * 2 + MERGE_ARRAYS + waiting) * state if columns > 1 else 0.0
    sent = rows * (columns * pair + (2 * sum(levels) - 1) * state) / P
    tile = 8 * min(2**19, p.B * p.H * m * n)
    return Costs(p.products / P, sent, pair + state, max(tile, together - pair - state))
