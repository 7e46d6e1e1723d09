"""How tokens and noise are drawn: normal, with the moments given, where the weights are.

Random numbers come from NumPy's generator, block by block, and move to the library and device of the weights: the same
seed gives the same samples everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .._arrays import Array, Namespace, device, dtype_name, namespace_of
from .._convert import to_library
from ..noise._inputs import width_of

__all__ = ["Normal", "Pairs", "Sampler", "energy", "fingerprint", "of_squares", "pick", "place", "through", "width"]

# Part of every fingerprint: another way of drawing the same samples gets another number.
DRAWS = 3


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
        Of float64, that one sample takes while it is drawn and added up: random numbers, what is computed of them and
        what comes out, as far as they are in memory at one time.
    theory : array or None
        What the closed form says.
    fingerprint : str
        Tells samplers of other parameters or dtypes apart; the same for every library. A state is continued by the
        sampler that has its fingerprint. Samplers of your own without one are taken for each other.

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
    fingerprint: str = ""


class Normal:
    """Independent tokens with a mean and a covariance, on the library, dtype and device of an array."""

    def __init__(self, like: Array, dim: int, mean: Any = None, covariance: Any = None) -> None:
        check_single(mean=mean, covariance=covariance)
        # Asked for once: in small blocks it would take as long as what is drawn.
        self.dim, self.xp, self.dtype, self.device = dim, namespace_of(like=like), like.dtype, device(like)
        kind = dtype_name(like.dtype)
        self.drawn = np.dtype(kind if kind in ("float32", "float64") else "float32")  # NumPy draws no narrower ones
        self.stays = isinstance(like, np.ndarray) and like.dtype == self.drawn
        self.mean = None if mean is None else to_library(mean, np, dtype="float64").astype(self.drawn)
        root = None if covariance is None else _root(to_library(covariance, np, dtype="float64"))
        self.factor = None if root is None else root.astype(self.drawn)

    def draw(self, generator: Any, count: int, N: int) -> Array:
        """An array (count, N, d)."""
        z = generator.standard_normal((count, N, self.dim), dtype=self.drawn)
        if self.factor is not None:
            z = z @ self.factor
        if self.mean is not None:
            z += self.mean
        if self.stays:
            return z
        return self.xp.astype(self.xp.asarray(z, device=self.device), self.dtype, copy=False)

    def numbers(self, N: int) -> int:
        """In memory at one time while N tokens are drawn."""
        return (1 if self.factor is None else 2) * N * self.dim


def check_single(**arrays: Any) -> None:
    """All tokens have one mean and one covariance (IA-X-35)."""
    for name, array in arrays.items():
        axes = 1 if name.startswith("mean") else 2
        if array is not None and array.ndim != axes:
            wanted = "1 axis" if axes == 1 else "2 axes"
            raise ValueError(
                f"a simulation draws tokens of one {name}, with {wanted}; got shape {tuple(array.shape)} [IA-X-35]"
            )


def fingerprint(name: str, **parameters: Any) -> str:
    """The name, and a hash of what the samples depend on: numbers, words, and the values and dtypes of arrays."""
    digest = hashlib.sha256(f"{DRAWS} {name}".encode())
    for key, value in sorted(parameters.items()):
        if hasattr(value, "dtype") and hasattr(value, "ndim") and value.ndim:
            host = np.ascontiguousarray(to_library(value, np, dtype="float64"), dtype="<f8")
            digest.update(f" {key} {dtype_name(value.dtype)} {host.shape} ".encode() + host.tobytes())
        elif value is not None:
            digest.update(f" {key} {float(value).hex() if isinstance(value, Real) else value} ".encode())
    return f"{name} {digest.hexdigest()[:32]}"


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


def width(dim: int | None, **arrays: Any) -> int:
    """The width of a token; an output projection does not tell it, if anything else does."""
    some = {name: array for name, array in arrays.items() if array is not None}  # checked, for the closed form
    others = {name: array for name, array in some.items() if name != "output_projection"}
    return width_of(dim, others if others or dim is not None else some)


def through(xp: Namespace, x: Array, weights: Array, projection: Any) -> Array:
    """Outputs (count, ..., dv) of tokens (count, N, d) for weights (..., N)."""
    flat = xp.reshape(weights, (-1, weights.shape[-1]))
    out = xp.matmul(flat, x)
    out = out if projection is None else xp.matmul(out, projection)
    return xp.reshape(out, (x.shape[0], *weights.shape[:-1], out.shape[-1]))


def energy(xp: Namespace, x: Array) -> Array:
    """||x||^2 over the last axis."""
    # NumPy's vecdot needs no array of squares; that of PyTorch and JAX takes several times as long as one.
    return np.vecdot(x, x) if isinstance(x, np.ndarray) else xp.sum(x * x, axis=-1)


def of_squares(held: int, weights: Array, d: int, projection: Any, *, kept: int = 0) -> int:
    """Numbers in memory at one time while outputs :func:`through` weights are computed and squared.

    ``held`` are those of the tokens, and ``kept`` those that stay after the outputs are there.
    """
    rows: int = math.prod(weights.shape[:-1])
    dv: int = d if projection is None else projection.shape[-1]
    passing: int = held + rows * d + (0 if projection is None else rows * dv)
    return max(passing, kept + 2 * rows * dv + rows, kept + 4 * rows)  # the last: sums of squares, for two components


class Pairs:
    """Independent pairs (x_i, y_i) with the means and covariances that a misalignment has."""

    def __init__(self, like: Array, keywords: dict[str, Any]) -> None:
        names = ("mean_x", "mean_y", "covariance_x", "covariance_y", "cross_covariance")
        arrays = dict(zip(names, pick(keywords, *names), strict=True))
        check_single(**arrays)
        projections = {name: value for name, value in keywords.items() if name.endswith("projection")}
        self.d = d = width(keywords.get("dim"), **arrays, **projections)
        mean_x, mean_y, x, y, cross = arrays.values()
        self.one_by_one = None if cross is not None else (Normal(like, d, mean_x, x), Normal(like, d, mean_y, y))
        if cross is not None:
            zero, eye = np.zeros(d), np.eye(d)
            usual = dict(zip(names, (zero, zero, eye, eye, cross), strict=True))
            mean_x, mean_y, x, y, cross = (
                to_library(usual[name] if array is None else array, np, dtype="float64")
                for name, array in arrays.items()
            )
            joint = np.block([[x, cross], [cross.T, y]])
            self.together = Normal(like, 2 * d, np.concatenate([mean_x, mean_y]), joint)

    def draw(self, generator: Any, count: int, N: int) -> tuple[Array, Array]:
        """Two arrays (count, N, d)."""
        if self.one_by_one is not None:
            x, y = (one.draw(generator, count, N) for one in self.one_by_one)
            return x, y
        both = self.together.draw(generator, count, N)
        return both[..., : self.d], both[..., self.d :]

    def numbers(self, N: int) -> int:
        """In memory at one time while N pairs are drawn."""
        if self.one_by_one is None:
            return self.together.numbers(N)
        x, y = (one.numbers(N) for one in self.one_by_one)
        return max(x, N * self.d + y)
