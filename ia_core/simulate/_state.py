"""What a simulation has found so far: exact sums, so that the order and the grouping of its blocks do not matter.

Of every block of B samples v the sums and the centred products

    S_p = sum_s v_p,   C_pq = sum_s (v_p - S_p / B) (v_q - S_q / B)

are taken in float64. With S_p S_q = G_pq + e_pq, G the rounded product,

    sum_s v_p v_q = G_pq / B + F_pq,   F_pq = C_pq + e_pq / B,

and S, G and F are added without rounding from block to block: two interrupted halves merge to the uninterrupted run, to
the last bit.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._exact import Levels, canonical, fold, two_product, two_sum

__all__ = [
    "State",
    "block_state",
    "block_sums",
    "check_one",
    "levels_of",
    "load_state",
    "merge",
    "moments",
    "moments_of",
    "rows_of",
    "save_state",
]

VERSION = 2


class State(NamedTuple):
    """The sums over some blocks of one simulation.

    Attributes
    ----------
    seed : int
    block : int
        Samples in a block.
    shape : tuple of int
        Of what is estimated.
    blocks : frozenset of int
        Which blocks are in the sums.
    components : int
        P: 1, or 2 for a ratio.
    sums : tuple of tuple of float
        Exact sums over the blocks: of every component, then two for every pair of components p <= q; each of these P +
        P (P + 1) for every element. The first row has them rounded, the second what that leaves, and so on.
    sampler : str
        The fingerprint of the sampler.

    Examples
    --------
    >>> State(0, 2, (), frozenset({0}), 1, ((3.0, 9.0, 0.5), (0.0, 0.0, 0.0))).samples
    2
    """

    seed: int
    block: int
    shape: tuple[int, ...]
    blocks: frozenset[int]
    components: int
    sums: tuple[tuple[float, ...], ...]
    sampler: str = ""

    @property
    def samples(self) -> int:
        """How many samples are in the sums."""
        return self.block * len(self.blocks)


def merge(one: State, other: State) -> State:
    """The state of all blocks of two.

    Parameters
    ----------
    one, other : State
        Of one simulation, without a block in common.

    Returns
    -------
    State
        The same, whatever is merged first.

    Raises
    ------
    ValueError
        If they are of different simulations, or a block is in both (IA-X-39).

    Examples
    --------
    >>> half = State(0, 1, (), frozenset({0}), 1, ((1.0, 1.0, 0.0), (0.0, 0.0, 0.0)))
    >>> other = State(0, 1, (), frozenset({1}), 1, ((2.0, 4.0, 0.0), (0.0, 0.0, 0.0)))
    >>> merge(half, other).sums[0]
    (3.0, 5.0, 0.0)
    """
    check_one(one, other)
    if one.components != other.components:
        came = f"{one.components} and {other.components}"
        raise ValueError(f"states that are merged must have one number of `components`; got {came} [IA-X-39]")
    sums = rows_of(canonical(fold(levels_of(one), levels_of(other))))
    return one._replace(blocks=one.blocks | other.blocks, sums=sums)


def check_one(one: State, other: State) -> None:
    """Both are of one simulation, and have no block in common (IA-X-39)."""
    if one.sampler != other.sampler:
        came = f"{one.sampler or 'none'} and {other.sampler or 'none'}"
        raise ValueError(f"states that are merged must be of one sampler; got the fingerprints {came} [IA-X-39]")
    for name in ("seed", "shape", "block"):
        if getattr(one, name) != getattr(other, name):
            came = f"{getattr(one, name)} and {getattr(other, name)}"
            raise ValueError(f"states that are merged must have one `{name}`; got {came} [IA-X-39]")
    both = one.blocks & other.blocks
    if both:
        raise ValueError(f"states that are merged must have no block in common; both have {min(both)} [IA-X-39]")


def block_sums(components: list[Any]) -> Any:
    """S, and G and F of every pair, of the components' values (samples, ...): one array (L,)."""
    flat = [np.reshape(np.asarray(one, dtype=np.float64), (len(one), -1)) for one in components]
    count = len(flat[0])
    sums = [np.einsum("sk->k", one) for one in flat]
    centred = [one - total / count for one, total in zip(flat, sums, strict=True)]
    found = list(sums)
    for p, one in enumerate(centred):
        for q in range(p, len(centred)):
            product, off = two_product(sums[p], sums[q])
            found += [product, np.einsum("sk,sk->k", one, centred[q]) + off / count]
    return np.concatenate(found)


def block_state(seed: int, index: int, components: list[Any], shape: tuple[int, ...], sampler: str = "") -> State:
    """The state of one block."""
    numbers = block_sums(components)
    rows = rows_of((numbers, np.zeros_like(numbers)))
    return State(seed, len(components[0]), shape, frozenset({index}), len(components), rows, sampler)


def rows_of(rows: Levels) -> tuple[tuple[float, ...], ...]:
    """Rows as a state has them: those after the second only where there is something in them."""
    last = max((n for n, row in enumerate(rows) if row.any()), default=0)
    return tuple(tuple(row.tolist()) for row in rows[: max(2, last + 1)])


def levels_of(state: State) -> Levels:
    """The sums of a state as arrays."""
    return tuple(np.asarray(row, dtype=np.float64) for row in state.sums)


def moments(state: State) -> tuple[Any, Any]:
    """Means (p, ...) and covariances (p, p, ...) of the components; the covariances need two samples."""
    return moments_of(levels_of(state), state, len(state.blocks))


def moments_of(rows: Levels, state: State, blocks: int) -> tuple[Any, Any]:
    """The same of rows over so many blocks, in place of the state's own."""
    n, P = blocks * state.block, state.components
    high, low = (row.reshape(P + P * (P + 1), -1) for row in rows[:2])
    means = high[:P] / n
    covariances = np.zeros((P, P, high.shape[-1]))
    at = P
    for p in range(P):
        for q in range(p, P):
            # sum_b G - T_p T_q / blocks, T the totals, to 100 bits: where means are large, nearly all of it cancels.
            product, off = two_product(high[p], high[q])
            off = off + (high[p] * low[q] + low[p] * high[q])
            part = product / blocks
            back, error = two_product(part, float(blocks))
            rest = (((product - back) - error) + off) / blocks
            between, left = two_sum(high[at], -part)
            between = between + (left + low[at] - rest)
            covariances[p, q] = covariances[q, p] = (high[at + 1] + between / state.block) / (n - 1)
            at += 2
    return means.reshape(P, *state.shape), covariances.reshape(P, P, *state.shape)


def save_state(state: State, path: str | os.PathLike[str]) -> None:
    """Write a state as JSON, whole or not at all.

    Parameters
    ----------
    state : State
    path : path

    Examples
    --------
    >>> state = State(0, 2, (), frozenset({0, 1}), 1, ((1.5, 2.25, 0.1), (0.0, 0.0, 0.0)), "noise_energy 1f")
    >>> save_state(state, "half.json")
    >>> load_state("half.json") == state
    True
    """
    path = Path(path)
    data = {"simulation": VERSION, **state._asdict(), "blocks": sorted(state.blocks)}
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(json.dumps(data) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load_state(path: str | os.PathLike[str]) -> State:
    """Read a state that :func:`save_state` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    State

    Raises
    ------
    ValueError
        If the file is none, is damaged, or does not say of which sampler it is, as those of the first version do not
        (IA-X-39).

    Examples
    --------
    >>> save_state(State(0, 2, (), frozenset({0}), 1, ((3.0, 9.0, 0.5), (0.0, 0.0, 0.0))), "state.json")
    >>> load_state("state.json").samples
    2
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        version = data.pop("simulation")
        if version == 1:
            raise ValueError("it is of version 1, which does not tell of which sampler it is, and must be run again")
        if version != VERSION:
            raise ValueError(f"it is of version {version}, and this is {VERSION}")
        state = State(**data)
        state = state._replace(
            shape=tuple(_whole(x) for x in state.shape),
            blocks=frozenset(_whole(x) for x in state.blocks),
            sums=tuple(tuple(float(x) for x in row) for row in state.sums),
        )
        if not state.blocks or len(state.blocks) != len(data["blocks"]):
            raise ValueError("no blocks, or one twice")
        P, size = state.components, math.prod(state.shape)
        wanted = (P + P * (P + 1)) * size
        if P not in (1, 2) or len(state.sums) < 2 or any(len(row) != wanted for row in state.sums):
            raise ValueError("sums of another shape")
        if not all(math.isfinite(x) for row in state.sums for x in row):
            raise ValueError("sums that are not finite")
        if _whole(state.block) < 1 or _whole(state.seed) < 0 or not isinstance(state.sampler, str):
            raise ValueError("no numbers where there should be some")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"`{path}` is no state of a simulation, or is damaged: {error} [IA-X-39]") from error
    return state._replace(sums=rows_of(canonical(levels_of(state))))


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"no count: {number!r}")
    return number
