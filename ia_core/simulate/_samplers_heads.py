"""Samplers of several heads, drawn from the definition: all heads read the same tokens and the same noise."""

from __future__ import annotations

import math
from typing import Any

from .. import noise as theory
from .._arrays import Array, Namespace, move_axis, namespace_of
from ..noise._inputs import check_number, check_weights
from ._draws import Normal, Pairs, Sampler, energy, fingerprint, pick, width

__all__ = ["multi_head_misalignment_snr", "multi_head_snr"]


def multi_head_snr(weights: Array, sigma: float, **keywords: Any) -> Sampler:
    """Samples of signal and noise of all heads: :func:`ia_core.noise.multi_head_snr`.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    sigma : float
        Positive.
    **keywords
        dim, mean, covariance, noise_covariance, value_projection, output_projection, form: as there. The form
        is that of ``theory`` alone.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> multi_head_snr(np.full((2, 1, 4), 0.25), 0.5, dim=8).theory
    array([4.])
    """
    check_number("sigma", sigma, positive=True, scalar=True)
    wanted = theory.multi_head_snr(weights, sigma, **keywords)
    dim, mean, spread, noisy, V, out = pick(
        keywords, "dim", "mean", "covariance", "noise_covariance", "value_projection", "output_projection"
    )
    arrays = {"mean": mean, "covariance": spread, "noise_covariance": noisy}
    d = width(dim, **arrays, value_projection=V, output_projection=out)
    a, xp = check_weights(weights), namespace_of(weights=weights)
    x, eps, scaled = Normal(a, d, mean, spread), Normal(a, d, None, noisy), sigma * a

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        signal = energy(xp, _output(xp, x.draw(generator, count, a.shape[-1]), a, V, out))
        return signal, energy(xp, _output(xp, eps.draw(generator, count, a.shape[-1]), scaled, V, out))

    N, tokens = a.shape[-1], a.shape[-1] * d
    drawing, passing = max(x.numbers(N), eps.numbers(N)), _of_outputs(tokens, a, d, V, out)
    mark = fingerprint(
        "multi_head_snr", weights=a, sigma=sigma, d=d, **arrays, value_projection=V, output_projection=out
    )
    shape = (*a.shape[:-3], a.shape[-2])
    return Sampler(draw, shape, math.prod(shape) + max(drawing, passing), wanted, mark)


def multi_head_misalignment_snr(weights: Array, **keywords: Any) -> Sampler:
    """Samples of all heads' aligned output and misalignment: :func:`ia_core.noise.multi_head_misalignment_snr`.

    Parameters
    ----------
    weights : array of shape (..., H, M, N)
    **keywords
        dim, mean_x, mean_y, covariance_x, covariance_y, cross_covariance, value_projection, output_projection,
        form: as there. The form is that of ``theory`` alone.

    Returns
    -------
    Sampler

    Examples
    --------
    >>> import numpy as np
    >>> multi_head_misalignment_snr(np.full((2, 1, 4), 0.25), dim=8).theory
    array([0.5])
    """
    wanted = theory.multi_head_misalignment_snr(weights, **keywords)
    a, (V, out) = check_weights(weights), pick(keywords, "value_projection", "output_projection")
    pairs, xp = Pairs(a, keywords), namespace_of(weights=a)

    def draw(generator: Any, count: int) -> tuple[Any, ...]:
        x, y = pairs.draw(generator, count, a.shape[-1])
        return energy(xp, _output(xp, x, a, V, out)), energy(xp, _output(xp, y - x, a, V, out))

    d, N, shape = pairs.d, a.shape[-1], (*a.shape[:-3], a.shape[-2])
    passing = _of_outputs(3 * N * d, a, d, V, out, kept=2 * N * d)
    given = {key: value for key, value in keywords.items() if key not in ("dim", "form")}
    mark = fingerprint("multi_head_misalignment_snr", weights=a, d=d, **given)
    return Sampler(draw, shape, math.prod(shape) + max(pairs.numbers(N), passing), wanted, mark)


def _output(xp: Namespace, x: Array, weights: Array, value_projection: Any, output_projection: Any) -> Array:
    """Outputs (count, ..., M, d_out) of tokens (count, N, d) for weights (..., H, M, N)."""
    H = weights.shape[-3]
    v = x if value_projection is None else xp.matmul(x, value_projection)
    del x
    count, N, _ = v.shape
    v = xp.permute_dims(xp.reshape(v, (count, N, H, -1)), (0, 2, 1, 3))  # (count, H, N, dh)
    v = xp.reshape(v, (count, *(1 for _ in weights.shape[:-3]), *v.shape[1:]))
    together = move_axis(xp.matmul(weights, v), -3, -2)  # (count, ..., M, H, dh)
    together = xp.reshape(together, (*together.shape[:-2], -1))  # (count, ..., M, H dh)
    return together if output_projection is None else xp.matmul(together, output_projection)


def _of_outputs(held: int, weights: Array, d: int, value: Any, output: Any, *, kept: int = 0) -> int:
    """Numbers in memory at one time while :func:`_output` is computed and squared; as in ``of_squares``."""
    rows: int = math.prod((*weights.shape[:-3], weights.shape[-2]))
    wide: int = d if value is None else value.shape[-1]
    dv: int = wide if output is None else output.shape[-1]
    projected = 0 if value is None else weights.shape[-1] * wide
    passing: int = held + projected + rows * (2 * wide + (0 if output is None else dv))  # heads, and heads together
    return max(passing, kept + 2 * rows * dv + rows, kept + 4 * rows)
