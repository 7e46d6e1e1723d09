"""What a simulation found, as numbers, a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from ._exact import Levels
from ._state import State, levels_of, moments_of

__all__ = ["PrecisionError", "Result", "estimate", "relative_error", "result_of"]


class Result(NamedTuple):
    """An estimate and how sure it is.

    Attributes
    ----------
    mean : array
        Of what was sampled, or the quotient of two means for a ratio.
    standard_error : array
        Of the mean; of a quotient to first order, from the covariance of the two.
    samples : int
    complete : bool
        False if it was interrupted before it was as precise as was asked for.
    state : State
        To go on from, to save, or to merge.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import simulate
    >>> found = simulate.run(simulate.noise_energy(np.full((1, 4), 0.25), 1.0, dim=8), precision=0.01)
    >>> bool(abs(found.mean[0] - 2) < 4 * found.standard_error[0])
    True
    """

    mean: Any
    standard_error: Any
    samples: int
    complete: bool
    state: State

    @property
    def precision(self) -> float:
        """The largest standard error over its mean."""
        return relative_error(self.mean, self.standard_error)

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Lower and upper end of the interval that covers the truth with this probability, for many samples."""
        if not 0 < confidence < 1:
            raise ValueError(f"`confidence` must be between 0 and 1; got {confidence} [IA-X-38]")
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * self.standard_error
        return self.mean - reach, self.mean + reach

    def table(self, names: Sequence[str] | None = None, theory: Any = None) -> str:
        """One line for each element; with what a closed form gives, how many standard errors it is off."""
        low, high = (np.ravel(end) for end in self.interval())
        mean, error = np.ravel(self.mean), np.ravel(self.standard_error)
        wanted = None if theory is None else np.broadcast_to(np.asarray(theory, dtype=float), self.mean.shape).ravel()
        names = [str(n) for n in range(mean.size)] if names is None else names
        width = max((len(name) for name in names), default=0)
        further = "" if wanted is None else f"  {'theory':>11} {'off':>6}"
        lines = [f"{'':<{width}}  {'mean':>11}  {'95 % interval':>25}{further}"]
        for n, name in enumerate(names):
            line = f"{name:<{width}}  {mean[n]:>11.5g}  {low[n]:>12.5g} {high[n]:>12.5g}"
            if wanted is not None:
                off = (mean[n] - wanted[n]) / error[n] if error[n] else 0.0
                line += f"  {wanted[n]:>11.5g} {off:>+6.2f}"
            lines.append(line)
        return "\n".join(lines)

    def plot(self, axes: Any, x: Sequence[float] | None = None, theory: Any = None, **look: Any) -> None:
        """Dots with 95 % intervals, and the theory as a line, into axes of matplotlib."""
        mean = np.ravel(self.mean)
        where = np.arange(mean.size) if x is None else np.asarray(x)
        reach = np.ravel(self.interval()[1]) - mean
        drawn = axes.errorbar(where, mean, yerr=reach, fmt="o", ms=4, capsize=2, **look)
        if theory is not None:
            line = np.broadcast_to(np.asarray(theory, dtype=float), self.mean.shape).ravel()
            axes.plot(where, line, color=drawn[0].get_color(), lw=1)


class PrecisionError(ValueError):
    """A precision is not to be had with so many samples, or not at all (IA-X-38).

    Parameters
    ----------
    message : str
    result : Result, optional
        What was found until then, not ``complete``: a run with a lower aim can go on from its ``state``. None if the
        run was refused before it began.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core import simulate
    >>> sampler = simulate.noise_energy(np.full((1, 4), 0.25), 1.0, dim=8)
    >>> try:
    ...     found = simulate.run(sampler, precision=1e-4, most=10**6)
    ... except simulate.PrecisionError as error:
    ...     found = simulate.run(sampler, precision=0.01, state=error.result.state)
    >>> found.complete
    True
    """

    def __init__(self, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


def result_of(state: State, complete: bool) -> Result:
    """The estimate of a state of two samples or more."""
    mean, error = estimate(levels_of(state), state, len(state.blocks))
    return Result(mean, error, state.samples, complete, state)


def estimate(rows: Levels, state: State, blocks: int) -> tuple[Any, Any]:
    """Mean and standard error of rows over so many blocks of what the state is of."""
    means, covariances = moments_of(rows, state, blocks)
    n = blocks * state.block
    if len(means) == 1:
        return means[0], np.sqrt(np.maximum(covariances[0, 0], 0) / n)
    over, under = means
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = over / under
        spread = covariances[0, 0] - 2 * ratio * covariances[0, 1] + ratio * ratio * covariances[1, 1]
        return ratio, np.sqrt(np.maximum(spread, 0) / n) / np.abs(under)


def relative_error(mean: Any, error: Any) -> float:
    """The largest standard error over its mean; nan where a mean is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where((error == 0) & np.isfinite(mean), 0.0, error / np.abs(mean))
    return float(np.max(relative, initial=0.0))
