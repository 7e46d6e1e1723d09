"""Draw blocks of samples until the estimate is as precise as was asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .._convert import to_library
from ._draws import Sampler
from ._result import Result, result_of
from ._state import State, block_state, merge

__all__ = ["run"]

# Before so many samples nobody can say how precise an estimate is.
LEAST = 256


def run(
    sampler: Sampler,
    *,
    seed: int = 0,
    precision: float | None = None,
    blocks: Iterable[int] | None = None,
    most: int = 10**9,
    block_bytes: int = 2**25,
    state: State | None = None,
    progress: bool | Callable[[Result], None] = False,
) -> Result:
    """Estimate the mean of what a sampler draws.

    Parameters
    ----------
    sampler : Sampler
        For example ``simulate.noise_energy(...)``.
    seed : int
        Block k of a seed is the same in every run.
    precision : float, optional
        Go on until every standard error is at most so much of its mean; 0.003 by default.
    blocks : iterable of int, optional
        Draw these blocks and no others, whatever precision they give.
    most : int
        Samples; a precision that needs more is refused as soon as that can be told.
    block_bytes : int
        Bytes that the random numbers of a block may take in float64: this, a few times, bounds the memory.
    state : State, optional
        Of an earlier run, which this one continues.
    progress : bool or callable
        True prints a line to stderr every second; a callable is given the result so far, after every block.

    Returns
    -------
    Result
        After Ctrl-C with what was found until then, and ``complete`` False.

    Raises
    ------
    ValueError
        If no sample is asked for, or a precision that needs more than ``most`` (IA-X-38), or the state is of another
        simulation (IA-X-39).

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core.simulate import noise_energy
    >>> sampler = noise_energy(np.full((1, 4), 0.25), 1.0, dim=8)
    >>> whole, first = run(sampler, blocks=range(4)), run(sampler, blocks=range(2))
    >>> run(sampler, blocks=range(2, 4), state=first.state).state == whole.state
    True
    """
    if precision is not None and blocks is not None:
        raise ValueError("give `precision` or `blocks`, not both [IA-X-38]")
    precision = 0.003 if precision is None else precision
    if not (isinstance(precision, float) and 0 < precision < 1):
        raise ValueError(f"`precision` must be between 0 and 1; got {precision!r} [IA-X-38]")
    count = max(2, min(block_bytes // (8 * sampler.numbers), 2**16))
    wanted = None if blocks is None else list(blocks)
    if most < 2 or (wanted is not None and not wanted and state is None):
        raise ValueError("a simulation needs samples; it was asked for none [IA-X-38]")
    tell = _printer() if progress is True else progress or (lambda result: None)
    complete = True
    try:
        for index in _indices(wanted, state):
            found = _block(sampler, seed, index, count)
            state = found if state is None else merge(state, found)
            so_far = result_of(state, wanted is not None)
            tell(so_far)
            if wanted is None and _enough(so_far, precision, most):
                break
    except KeyboardInterrupt:
        complete = False
        if state is None:
            raise
    assert state is not None
    return result_of(state, complete)


def _indices(wanted: list[int] | None, state: State | None) -> Iterable[int]:
    if wanted is not None:
        return wanted
    first = 0 if state is None or not state.blocks else max(state.blocks) + 1
    return iter(range(first, sys.maxsize))


def _block(sampler: Sampler, seed: int, index: int, count: int) -> State:
    generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, index])))
    values = sampler.draw(generator, count)
    return block_state(seed, index, [to_library(one, np) for one in values], sampler.shape)


def _enough(so_far: Result, precision: float, most: int) -> bool:
    if so_far.samples < LEAST:
        return False
    if so_far.precision <= precision:
        return True
    needed = so_far.samples * (so_far.precision / precision) ** 2
    if not needed <= most:
        raise ValueError(
            f"`precision` {precision:g} needs about {needed:.2g} samples, more than `most`, {most:g} [IA-X-38]"
        )
    return False


def _printer() -> Callable[[Result], None]:
    last = [time.monotonic()]

    def tell(so_far: Any) -> None:
        if time.monotonic() - last[0] >= 1:
            last[0] = time.monotonic()
            print(f"{so_far.samples} samples, precision {so_far.precision:.2g}", file=sys.stderr, flush=True)

    return tell
