"""How tokens and noise are drawn: normal, with the moments given, where the weights are.

Random numbers come from NumPy's generator, block by block, and move to the library and device of the weights: the same
seed gives the same samples everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array, device, dtype_name, namespace_of
from .._convert import to_library
from ..noise._inputs import given, width_of

__all__ = ["Normal", "Pairs", "Sampler", "pick", "place", "through", "width"]


class Sampler(NamedTuple):
    """How samples are drawn.

    Attributes
    ----------
    draw : callable
        ``draw(generator, count)`` gives a tuple of one array of shape (count, ...), or of two whose means are divided.
        The generator is NumPy's.
    shape : tuple of int
        Of what is estimated: the axes after the samples.
    numbers : int
        Random numbers that one sample takes.
    theory : array or None
        What the closed form says.

    Examples
    --------
    >>> import numpy as np
    >>> from ia_core.simulate import noise_energy
    >>> noise_energy(np.full((3, 4), 0.25), 1.0, dim=8).shape
    (3,)
    """

    draw: Callable[[Any, int], tuple[Any, ...]]
    shape: tuple[int, ...]
    numbers: int
    theory: Any = None


class Normal:
    """Independent tokens with a mean and a covariance, on the library, dtype and device of an array."""

    def __init__(self, like: Array, dim: int, mean: Any = None, covariance: Any = None) -> None:
        for name, array, axes in (("mean", mean, 1), ("covariance", covariance, 2)):
            if array is not None and array.ndim != axes:
                raise ValueError(
                    f"a simulation draws tokens of one {name}, with {axes} axes; got {tuple(array.shape)} [IA-X-35]"
                )
        self.like, self.dim = like, dim
        self.mean = None if mean is None else to_library(mean, np, dtype="float64")
        self.factor = None if covariance is None else _root(to_library(covariance, np, dtype="float64"))

    def draw(self, generator: Any, count: int, N: int) -> Array:
        """An array (count, N, d)."""
        kind = np.dtype(dtype_name(self.like.dtype))
        z = generator.standard_normal((count, N, self.dim), dtype=kind)
        if self.factor is not None:
            z = z @ self.factor.astype(kind)
        if self.mean is not None:
            z = z + self.mean.astype(kind)
        return place(z, self.like)


def place(array: Any, like: Array) -> Array:
    """A NumPy array where another array is, without a copy where the library allows."""
    return namespace_of(like=like).asarray(array, device=device(like))


def _root(covariance: Any) -> Any:
    """F with F^T F = covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def pick(keywords: dict[str, Any], *names: str) -> list[Any]:
    """The keywords of these names, None where one is not given."""
    return [keywords.get(name) for name in names]


def width(dim: int | None, weights: Array, **arrays: Any) -> int:
    """The width of a token; an output projection does not tell it, if anything else does."""
    some = given(weights, **arrays)
    others = {name: array for name, array in some.items() if name != "output_projection"}
    return width_of(dim, others if others or dim is not None else some)


def through(x: Array, weights: Array, projection: Any) -> Array:
    """Outputs (count, ..., dv) of tokens (count, N, d) for weights (..., N)."""
    xp = namespace_of(weights=weights)
    flat = xp.reshape(weights, (-1, weights.shape[-1]))
    out = xp.matmul(flat, x)
    out = out if projection is None else xp.matmul(out, projection)
    return xp.reshape(out, (x.shape[0], *weights.shape[:-1], out.shape[-1]))


class Pairs:
    """Independent pairs (x_i, y_i) with the means and covariances that a misalignment has."""

    def __init__(self, weights: Array, like: Array, keywords: dict[str, Any]) -> None:
        names = ("mean_x", "mean_y", "covariance_x", "covariance_y", "cross_covariance")
        arrays = dict(zip(names, pick(keywords, *names), strict=True))
        projections = {name: value for name, value in keywords.items() if name.endswith("projection")}
        self.d = d = width(keywords.get("dim"), weights, **arrays, **projections)
        zero, eye = np.zeros(d), np.eye(d)
        usual = dict(zip(names, (zero, zero, eye, eye, np.zeros((d, d))), strict=True))
        mean_x, mean_y, x, y, cross = (
            usual[name] if array is None else to_library(array, np, dtype="float64") for name, array in arrays.items()
        )
        self.pair = Normal(like, 2 * d, np.concatenate([mean_x, mean_y]), np.block([[x, cross], [cross.T, y]]))

    def draw(self, generator: Any, count: int, N: int) -> tuple[Array, Array]:
        """Two arrays (count, N, d)."""
        both = self.pair.draw(generator, count, N)
        return both[..., : self.d], both[..., self.d :]
