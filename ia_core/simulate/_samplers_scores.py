"""Samplers of noise that passes the softmax, and of depth: attention and layers are computed as they are."""

from __future__ import annotations

import math
from typing import Any

from .. import noise as theory
from .._arrays import Array, namespace_of
from .._attention import attention_weights, indirect_attention
from ..noise._inputs import check_choice, check_dim, check_number, check_weights
from ._draws import Normal, Sampler, energy, fingerprint

__all__ = ["depth_snr", "key_noise_energy", "query_noise_energy"]


def key_noise_energy(query: Array, key: Array, value: Array, sigma: float, *, scale: float | None = None) -> Sampler:
    """Samples of ||o^ - o||^2 for noise on the keys, of all orders: :func:`ia_core.noise.key_noise_energy`.

    Parameters
    ----------
    query : array of shape (H, M, D)
    key : array of shape (H, N, D)
    value : array of shape (H, N, Dv)
    sigma : float
    scale : float, optional

    Returns
    -------
    Sampler
        Of shape (H, M). The closed form is of first order: their difference falls with sigma^2 relatively.

    Examples
    --------
    >>> import numpy as np
    >>> key_noise_energy(np.ones((1, 2, 4)), np.ones((1, 3, 4)), np.eye(3)[None], 0.1).shape
    (1, 2)
    """
    return _perturbed("key", query, key, value, sigma, scale)


def query_noise_energy(query: Array, key: Array, value: Array, sigma: float, *, scale: float | None = None) -> Sampler:
    """Samples of ||o^ - o||^2 for noise on the queries, of all orders: :func:`ia_core.noise.query_noise_energy`.

    Parameters
    ----------
    query, key, value, sigma, scale
        As for :func:`key_noise_energy`.

    Returns
    -------
    Sampler
        Of shape (H, M).

    Examples
    --------
    >>> import numpy as np
    >>> query_noise_energy(np.ones((1, 2, 4)), np.ones((1, 3, 4)), np.eye(3)[None], 0.1).shape
    (1, 2)
    """
    return _perturbed("query", query, key, value, sigma, scale)


def _perturbed(what: str, query: Array, key: Array, value: Array, sigma: float, scale: float | None) -> Sampler:
    check_number("sigma", sigma, scalar=True)
    weights, clean = attention_weights(query, key, scale=scale), indirect_attention(query, key, value, scale=scale)
    xp = namespace_of(query=query)
    wanted = (
        theory.key_noise_energy(weights, query, value, sigma, scale=scale)
        if what == "key"
        else theory.query_noise_energy(weights, key, value, sigma, scale=scale)
    )
    inputs = {"query": query, "key": key, "value": value}
    noisy = inputs[what]
    size = math.prod(noisy.shape)
    eps = Normal(noisy, size)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        # Antithetic: the part of the first order changes its sign, those of even orders do not; the mean of both
        # squares is that of one, with less spread.
        moved = sigma * xp.reshape(eps.draw(generator, count, 1), (count, *noisy.shape))
        spread = {name: xp.broadcast_to(array, (count, *array.shape)) for name, array in inputs.items()}
        squares = 0.0
        for sign in (1.0, -1.0):
            output = indirect_attention(**spread | {what: spread[what] + sign * moved}, scale=scale)
            squares = squares + energy(xp, output - clean) / 2
        return (squares,)

    step = query.shape[-1] ** -0.5 if scale is None else scale
    mark = fingerprint(f"{what}_noise_energy", **inputs, sigma=sigma, scale=step)
    return Sampler(draw, tuple(query.shape[:-1]), _of_attention(size, query, key, value), wanted, mark)


def _of_attention(size: int, query: Array, key: Array, value: Array) -> int:
    """Numbers in memory at one time, for noise of that size.

    The noise and what it moves, the copies that some libraries broadcast to, and the arrays of attention: those of its
    scores five times, or its output three times.
    """
    rows: int = math.prod(query.shape[:-1])
    heads, (N, Dv) = rows // max(1, query.shape[-2]), value.shape[-2:]
    scores, output = rows * N, rows * Dv
    inputs: int = sum(math.prod(array.shape) for array in (query, key, value))
    repeated: int = 0 if key.shape[:-2] == query.shape[:-2] else heads * N * (key.shape[-1] + Dv)
    attention: int = max(5 * scores + rows, scores + output, 3 * output)
    return 3 * size + inputs + repeated + attention + 3 * rows


def depth_snr(
    weights: Array,
    sigma: float,
    *,
    dim: int,
    mean_square: float = 0.0,
    gain: float = 1.0,
    normalisation: str | None = None,
) -> Sampler:
    """Samples of signal and noise after L residual layers with random projections: :func:`ia_core.noise.depth_snr`.

    Parameters
    ----------
    weights : array of shape (L, N, N)
    sigma : float
    dim : int
        Width of a token.
    mean_square, gain
        As there.
    normalisation : str, optional
        None: x + A x W. pre: x + A n(x) W. post: n(x + A x W). n divides each token by its root mean square. With it
        there is no closed form.

    Returns
    -------
    Sampler
        Of shape (N,), after the last layer: the energy of the clean tokens over that of what the noisy ones differ from
        them by (P6), each normalised by its own size.

    Examples
    --------
    >>> import numpy as np
    >>> depth_snr(np.full((2, 4, 4), 0.25), 1.0, dim=16, mean_square=1.0).theory.round(2)
    array([3.29, 3.29, 3.29, 3.29])
    """
    check_choice("normalisation", normalisation, (None, "pre", "post"))
    check_dim(dim)
    if weights.ndim != 3:
        raise ValueError(f"a simulation of depth takes weights (L, N, N); got shape {tuple(weights.shape)} [IA-X-35]")
    wanted = theory.depth_snr(weights, sigma, mean_square=mean_square, gain=gain)[-1, :]
    a, xp = check_weights(weights), namespace_of(weights=weights)
    layers, N = a.shape[0], a.shape[-1]
    z, projections = Normal(a, dim), Normal(a, dim)

    def normal(x: Array) -> Array:
        return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True))

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        clean = z.draw(generator, count, N) + mean_square**0.5
        # Without a normalisation layers are linear, and the difference is followed by itself, which does not cancel.
        other = sigma * z.draw(generator, count, N)
        other = other if normalisation is None else clean + other
        for layer in range(layers):
            W = projections.draw(generator, count, dim) * (gain / dim**0.5)  # E W W^T = gain^2 I
            into = normal if normalisation == "pre" else (lambda x: x)
            clean, other = (x + xp.matmul(xp.matmul(a[layer, ...], into(x)), W) for x in (clean, other))
            if normalisation == "post":
                clean, other = normal(clean), normal(other)
        return energy(xp, clean), energy(xp, other if normalisation is None else other - clean)

    given = {"mean_square": mean_square, "gain": gain, "normalisation": normalisation}
    mark = fingerprint("depth_snr", weights=a, sigma=sigma, d=dim, **given)
    # A projection while it is scaled; then beside it the tokens and the noise, of which one is in the layer.
    numbers = 2 * dim * dim + 7 * N * dim + 4 * N
    return Sampler(draw, (N,), numbers, wanted if normalisation is None else None, mark)
