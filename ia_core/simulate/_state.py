"""What a simulation has found so far: exact sums, so that the order and the grouping of its blocks do not matter.

Of every block the sums and the centred products are taken in float64. From there on they are rational numbers, whose
addition is associative: two interrupted halves merge to the uninterrupted run, to the last bit.
"""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["State", "block_state", "load_state", "merge", "moments", "save_state"]


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
    totals : tuple of Fraction
        sum_s v_p, for every component p of the sampler and every element.
    products : tuple of Fraction
        sum_s v_p v_q, for every pair p <= q.

    Examples
    --------
    >>> State(0, 2, (), frozenset({0}), (Fraction(3),), (Fraction(5),)).samples
    2
    """

    seed: int
    block: int
    shape: tuple[int, ...]
    blocks: frozenset[int]
    totals: tuple[Fraction, ...]
    products: tuple[Fraction, ...]

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
    >>> half = State(0, 1, (), frozenset({0}), (Fraction(1),), (Fraction(1),))
    >>> other = State(0, 1, (), frozenset({1}), (Fraction(2),), (Fraction(4),))
    >>> merge(half, other).totals
    (Fraction(3, 1),)
    """
    for name in ("seed", "block", "shape"):
        if getattr(one, name) != getattr(other, name):
            came = f"{getattr(one, name)} and {getattr(other, name)}"
            raise ValueError(f"states that are merged must have one `{name}`; got {came} [IA-X-39]")
    if len(one.totals) != len(other.totals):
        raise ValueError("states that are merged must be of one sampler [IA-X-39]")
    both = one.blocks & other.blocks
    if both:
        raise ValueError(f"states that are merged must have no block in common; both have {min(both)} [IA-X-39]")
    return one._replace(
        blocks=one.blocks | other.blocks,
        totals=tuple(x + y for x, y in zip(one.totals, other.totals, strict=True)),
        products=tuple(x + y for x, y in zip(one.products, other.products, strict=True)),
    )


def block_state(seed: int, index: int, components: list[Any], shape: tuple[int, ...]) -> State:
    """The state of one block, of the components' values, each of shape (samples, ...)."""
    flat = [np.reshape(np.asarray(one, dtype=np.float64), (len(one), -1)) for one in components]
    count = len(flat[0])
    sums = [one.sum(axis=0) for one in flat]
    totals = [[Fraction(float(x)) for x in one] for one in sums]
    products: list[Fraction] = []
    for p, one in enumerate(flat):
        for q in range(p, len(flat)):
            centred = np.sum((one - sums[p] / count) * (flat[q] - sums[q] / count), axis=0)
            pairs = zip(centred, totals[p], totals[q], strict=True)
            products += [Fraction(float(c)) + x * y / count for c, x, y in pairs]
    return State(seed, count, shape, frozenset({index}), tuple(x for one in totals for x in one), tuple(products))


def moments(state: State) -> tuple[Any, Any]:
    """Means (p, ...) and covariances (p, p, ...) of the components; the covariances need two samples."""
    n, size = state.samples, int(np.prod(state.shape))
    P = len(state.totals) // size if size else 1
    means = np.zeros((P, size))
    covariances = np.zeros((P, P, size))
    for p in range(P):
        means[p] = [float(x / n) for x in state.totals[p * size : (p + 1) * size]]
    at = 0
    for p in range(P):
        for q in range(p, P):
            for k in range(size):
                total = state.totals[p * size + k] * state.totals[q * size + k]
                covariances[p, q, k] = covariances[q, p, k] = float((state.products[at + k] - total / n) / (n - 1))
            at += size
    return means.reshape(P, *state.shape), covariances.reshape(P, P, *state.shape)


def save_state(state: State, path: str | os.PathLike[str]) -> None:
    """Write a state as JSON, whole or not at all.

    Parameters
    ----------
    state : State
    path : path

    Examples
    --------
    >>> state = State(0, 2, (), frozenset({0, 1}), (Fraction(3, 2),), (Fraction(5),))
    >>> save_state(state, "half.json")
    >>> load_state("half.json") == state
    True
    """
    path = Path(path)
    data = {
        "simulation": 1,
        **state._asdict(),
        "blocks": sorted(state.blocks),
        "totals": [str(x) for x in state.totals],
        "products": [str(x) for x in state.products],
    }
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
        If the file is none, or is damaged (IA-X-39).

    Examples
    --------
    >>> save_state(State(0, 2, (), frozenset({0}), (Fraction(3),), (Fraction(5),)), "state.json")
    >>> load_state("state.json").samples
    2
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.pop("simulation") != 1:
            raise ValueError("another version")
        state = State(**data)
        state = state._replace(
            shape=tuple(int(x) for x in state.shape),
            blocks=frozenset(int(x) for x in state.blocks),
            totals=tuple(Fraction(x) for x in state.totals),
            products=tuple(Fraction(x) for x in state.products),
        )
        size = int(np.prod(state.shape))
        P = len(state.totals) // max(1, size)
        if len(state.totals) != P * size or len(state.products) != P * (P + 1) // 2 * size or state.block < 1:
            raise ValueError("sums of another shape")
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"`{path}` is no state of a simulation, or is damaged: {error} [IA-X-39]") from error
    return state
