"""Draw blocks of samples until the estimate is as precise as was asked for."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from .._convert import to_library
from ._draws import Sampler
from ._exact import Levels, add, canonical
from ._result import PrecisionError, Result, estimate, relative_error, result_of
from ._state import State, block_sums, check_one, levels_of, rows_of

__all__ = ["block_size", "run"]

# Before so many samples nobody can say how precise an estimate is.
LEAST = 256
SMALLEST, LARGEST = 1e-130, 1e140
# Numbers that the exact sums take for every element, while they are added to and when they become a state: 8 sums for
# two components, 16 numbers each.
SUMS = 128


class _Tally(NamedTuple):
    """What is added up: replaced as a whole, so that an interruption leaves the one before."""

    levels: Levels
    components: int
    added: int


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
        Not negative. Block k of a seed is the same in every run.
    precision : float, optional
        Go on until every standard error is at most so much of its mean; 0.003 by default. It is looked at after every
        block up to the 32nd, then every time that the number of blocks has grown by a sixteenth or less, and after the
        last one that ``most`` allows.
    blocks : iterable of int, optional
        Draw these blocks and no others, whatever precision they give.
    most : int
        Samples, which are never exceeded; a precision that needs more is refused as soon as that can be told.
    block_bytes : int
        A block has as many samples as fit into so many bytes with all that is computed of them, but not more than
        65536. Beyond what the sampler holds already, the memory stays within 1.25 times this, 128 KB and 256 bytes for
        each block. It is refused where two samples, or the sums over them, do not fit.
    state : State, optional
        Of an earlier run with the same sampler and seed, which this one continues in blocks of the same size.
    progress : bool or callable
        True prints a line to stderr every second; a callable is given the result so far, after every block, which
        takes time where blocks are small.

    Returns
    -------
    Result
        After Ctrl-C with what was found until then, and ``complete`` False.

    Raises
    ------
    TypeError, ValueError
        If no sample is asked for, or a sample does not fit into ``block_bytes`` (IA-X-38), or the state is of another
        simulation (IA-X-39).
    PrecisionError
        A ValueError: the precision cannot be reached, or needs more than ``most`` (IA-X-38). It has what was found.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core.simulate import noise_energy
    >>> sampler = noise_energy(np.full((1, 4), 0.25), 1.0, dim=8)
    >>> whole, first = run(sampler, blocks=range(4)), run(sampler, blocks=range(2))
    >>> run(sampler, blocks=range(2, 4), state=first.state).state == whole.state
    True
    """
    _check_kinds(sampler, blocks, progress)
    if precision is not None and blocks is not None:
        raise ValueError("give `precision` or `blocks`, not both [IA-X-38]")
    seed, most = _whole("seed", seed), _whole("most", most)
    wanted = None if blocks is None else [_whole("blocks", index) for index in blocks]
    if most < 2 or (wanted is not None and not wanted and state is None):
        raise ValueError("a simulation needs samples; it was asked for none [IA-X-38]")
    goal = None if wanted is not None else _goal(0.003 if precision is None else precision, most, sampler)
    count = min(block_size(sampler, block_bytes), most if state is None else _block_of(state))
    start = _start(State(seed, count, tuple(sampler.shape), frozenset(), 0, (), sampler.fingerprint), state, wanted)
    _check_most(start, len(wanted or ()), most)
    order: Sequence[int] = range(max(start.blocks, default=-1) + 1, sys.maxsize) if wanted is None else wanted
    tally, complete = _Tally(levels_of(start), start.components, 0), True
    tell = _printer() if progress is True else _teller(progress)
    try:
        if goal is not None and state is not None and _enough(start, tally, goal, most):
            return _result(start, tally, order, complete)  # it was interrupted after its last block
        for index in order:
            tally = _added(tally, _block(sampler, seed, index, count))
            tell(partial(_result, start, tally, order, wanted is not None))
            if goal is not None and _enough(start, tally, goal, most):
                break
    except PrecisionError as error:
        error.result = _result(start, tally, order, False) if tally.components else None
        raise
    except KeyboardInterrupt:
        complete = False
        if not tally.components:
            raise
    return _result(start, tally, order, complete)


def _check_kinds(sampler: Any, blocks: Any, progress: Any) -> None:
    kinds = (
        ("sampler", sampler, isinstance(sampler, Sampler), "a Sampler"),
        ("blocks", blocks, blocks is None or isinstance(blocks, Iterable), "iterable"),
        ("progress", progress, isinstance(progress, bool) or callable(progress), "True, False or callable"),
    )
    for name, given, right, rule in kinds:
        if not right:
            raise TypeError(f"`{name}` must be {rule}; got {type(given).__name__} [IA-X-38]")


def _block_of(state: Any) -> int:
    if not isinstance(state, State):
        raise TypeError(f"`state` must be a State; got {type(state).__name__} [IA-X-39]")
    return state.block


def block_size(sampler: Sampler, block_bytes: int) -> int:
    """Samples in a block."""
    size, of_one = _whole("block_bytes", block_bytes), 8 * max(1, sampler.numbers)
    least = max(2 * of_one, 8 * SUMS * math.prod(sampler.shape))
    if size < least:
        raise ValueError(
            f"`block_bytes` must be at least {least}: a sample takes {of_one}, of which there must be two, and the "
            f"sums take the rest; got {size} [IA-X-38]"
        )
    return min(size // of_one, 2**16)


def _whole(name: str, number: Any) -> int:
    """A whole number that is not negative."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"`{name}` must be an integer; got {type(number).__name__} [IA-X-38]")
    value: Any = number
    if not (isinstance(value, Integral) or float(value).is_integer()) or value < 0:
        raise ValueError(f"`{name}` must be an integer, and not negative; got {value} [IA-X-38]")
    return int(value)


def _goal(precision: Any, most: int, sampler: Sampler) -> float:
    """The precision, if it can be reached."""
    if isinstance(precision, bool) or not isinstance(precision, Real) or not 0 < float(precision) < 1:
        raise ValueError(f"`precision` must be between 0 and 1; got {precision!r} [IA-X-38]")
    if most < LEAST:
        raise ValueError(f"`most` must be at least {LEAST}: no precision can be told before; got {most} [IA-X-38]")
    if sampler.theory is not None and not np.all(np.isfinite(to_library(sampler.theory, np, dtype="float64"))):
        raise PrecisionError(
            f"`precision` {float(precision):g} cannot be reached: the closed form is not finite, as of a ratio whose "
            "denominator is 0 [IA-X-38]"
        )
    return float(precision)


def _start(empty: State, state: State | None, wanted: list[int] | None) -> State:
    """The state to go on from, if it is of this simulation."""
    if wanted is not None and len(set(wanted)) < len(wanted):
        raise ValueError("`blocks` must have no block twice [IA-X-38]")
    if state is None:
        return empty
    check_one(state, empty._replace(blocks=frozenset(wanted or ())))
    return state


def _check_most(start: State, blocks: int, most: int) -> None:
    if start.samples + blocks * start.block > most:
        raise ValueError(
            f"{blocks} blocks of {start.block} samples, after {start.samples}, are more than `most`, {most:g} [IA-X-38]"
        )


def _block(sampler: Sampler, seed: int, index: int, count: int) -> tuple[Any, int]:
    """The sums of a block, and of how many components."""
    generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(index,))))
    values = [v if isinstance(v, np.ndarray) else to_library(v, np) for v in sampler.draw(generator, count)]
    shape = (count, *sampler.shape)
    if len(values) not in (1, 2) or any(one.shape != shape for one in values):
        came = ", ".join(str(one.shape) for one in values)
        raise ValueError(f"a sampler must draw one array of shape {shape}, or two; it drew {came or 'none'} [IA-X-38]")
    with np.errstate(over="ignore", invalid="ignore"):
        sums = block_sums(values)
    if not np.isfinite(sums).all():
        raise ValueError(f"a sampler must draw finite numbers; the sums over block {index} are not [IA-X-38]")
    # Between these the squares, and what they are split into, are numbers of float64 with all of their digits.
    size = np.abs(sums[: len(values) * math.prod(sampler.shape)])
    if np.any((size > LARGEST) | ((size < SMALLEST) & (size > 0))):
        raise ValueError(
            f"a sampler must draw numbers whose sums over a block are 0 or between {SMALLEST:g} and {LARGEST:g}; "
            f"one over block {index} is not [IA-X-38]"
        )
    return sums, len(values)


def _added(tally: _Tally, block: tuple[Any, int]) -> _Tally:
    numbers, components = block
    if not tally.components:
        return _Tally((numbers, np.zeros_like(numbers)), components, 1)
    if components != tally.components:
        raise ValueError(f"the state has {tally.components} components, the sampler {components} [IA-X-39]")
    return _Tally(add(tally.levels, numbers), components, tally.added + 1)


def _result(start: State, tally: _Tally, order: Sequence[int], complete: bool) -> Result:
    """Of what a run started from, and of the first blocks of the order."""
    blocks = start.blocks | frozenset(order[: tally.added])
    sums = rows_of(canonical(tally.levels))
    return result_of(start._replace(blocks=blocks, components=tally.components, sums=sums), complete)


def _enough(start: State, tally: _Tally, goal: float, most: int) -> bool:
    """Whether it is as precise as that. When it is looked at depends on the blocks alone, not on where a run began."""
    blocks = len(start.blocks) + tally.added
    samples = blocks * start.block
    last = samples + start.block > most
    if not last and (samples < LEAST or blocks % (1 << max(0, blocks.bit_length() - 5))):
        return False
    if samples < LEAST:
        raise PrecisionError(
            f"`precision` {goal:g} cannot be told before {LEAST} samples; after {samples}, a block of {start.block} is "
            f"more than `most`, {most:g} [IA-X-38]"
        )
    of_both = start._replace(components=tally.components)
    precision = relative_error(*estimate(canonical(tally.levels), of_both, blocks))
    if precision <= goal:
        return True
    if math.isnan(precision):
        raise PrecisionError(
            f"`precision` {goal:g} cannot be reached: an estimate is not finite, as of a ratio whose denominator is 0 "
            "[IA-X-38]"
        )
    needed = samples * (precision / goal) ** 2
    if last or not needed <= most:
        raise PrecisionError(
            f"`precision` {goal:g} needs about {needed:.2g} samples, more than `most`, {most:g}, allows in blocks of "
            f"{start.block} [IA-X-38]"
        )
    return False


def _teller(progress: Any) -> Callable[[Callable[[], Result]], None]:
    return (lambda make: progress(make())) if progress else (lambda make: None)


def _printer() -> Callable[[Callable[[], Result]], None]:
    last = [time.monotonic()]

    def tell(make: Callable[[], Result]) -> None:
        if time.monotonic() - last[0] >= 1:
            last[0] = time.monotonic()
            so_far = make()
            print(f"{so_far.samples} samples, precision {so_far.precision:.2g}", file=sys.stderr, flush=True)

    return tell
