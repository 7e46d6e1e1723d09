"""Accuracy of trained models when their values are noisy, or stand at other positions than their keys say.

Queries and keys stay clean: the noise enters through the `attention` argument of the models, between the value
projection and the weights, as eps W_v of the same eps (B, N, d) in every layer. sigma is in units of the value
source's standard deviation per component, so that sigma = 1 is where P7 places SNR = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

from ia_core import indirect_attention

from ._model import logits_of
from ._variants import Options

__all__ = ["FRACTIONS", "SIGMAS", "first_layer_snr", "noisy_logits", "permutations", "value_scale"]

SIGMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def noisy_logits(options: Options) -> Callable[..., Any]:
    """``logits(params, x, y, eps, perm)`` with eps (B, N, d) added to the values and values permuted by perm (B, N)."""
    logits = logits_of(options)

    def noisy(params: Any, x: Any, y: Any, eps: Any, perm: Any) -> Any:
        return logits(params, x, y, attention=_Noisy(params, eps, perm, options.self_attention))

    return noisy


def first_layer_snr(options: Options) -> Callable[..., Any]:
    """``snr(params, x, y, eps, perm)``: E |o|^2 / E |o^ - o|^2 of the first layer's heads (P6)."""
    logits = logits_of(options)

    def snr(params: Any, x: Any, y: Any, eps: Any, perm: Any) -> Any:
        clean, noisy = (_Noisy(params, factor * eps, perm, options.self_attention) for factor in (0.0, 1.0))
        for attention in (clean, noisy):
            logits(params, x, y, attention=attention)
        xp = array_api_compat.array_namespace(x)
        error = noisy.first - clean.first
        return xp.sum(clean.first * clean.first) / xp.sum(error * error)

    return snr


def value_scale(params: Any, options: Options) -> float:
    """Standard deviation per component of what the values are projected from, over tokens and positions."""
    cross = options.model in ("cross", "query-run")
    rows = params.conditioning_positions if cross else params.content_positions
    on = options.key_positions if cross else options.value_positions
    source = params.tokens[:, None, :] + (rows if on else 0.0 * rows)[None]
    return float(np.sqrt(source.reshape(-1, source.shape[-1]).var(axis=0).mean()))


def permutations(rng: np.random.Generator, instances: int, length: int, fraction: float) -> np.ndarray:
    """Permutations (B, N) that move a fraction of the positions, along one cycle, and leave the others."""
    perm = np.tile(np.arange(length), (instances, 1))
    moved = round(fraction * length)
    if moved >= 2:
        where = np.argsort(rng.random((instances, length)), axis=1)[:, :moved]
        np.put_along_axis(perm, where, np.roll(where, 1, axis=1), axis=1)
    return perm


class _Noisy:
    """An attention whose values are disturbed; self-attention, every other call where there is one, is let through."""

    def __init__(self, params: Any, eps: Any, perm: Any, self_attention: bool) -> None:
        self.layers, self.eps, self.perm = iter(params.layers), eps, perm
        self.self_attention, self.calls, self.first = self_attention, 0, None

    def __call__(self, query: Any, key: Any, value: Any, **how: Any) -> Any:
        self.calls += 1
        if self.self_attention and self.calls % 2:
            return indirect_attention(query, key, value, **how)
        xp = array_api_compat.array_namespace(value)
        weight = next(self.layers).block.attention.value.weight  # (d, H, Dv)
        d, heads, width = weight.shape
        noise = xp.reshape(self.eps @ xp.reshape(weight, (d, heads * width)), (*self.eps.shape[:-1], heads, width))
        # The positions of a position-aware update stand in one more channel, which stays clean.
        noise = xp.moveaxis(noise, -2, -3)  # (B, H, N, Dv)
        if value.shape[-1] > width:
            noise = xp.concat([noise, xp.zeros_like(noise[..., :1])], axis=-1)
        chosen = self.perm[:, None, :, None] == xp.arange(value.shape[-2], device=array_api_compat.device(value))
        chosen = xp.astype(chosen, value.dtype)  # (B, 1, N, N): one-hot rows
        output = indirect_attention(query, key, chosen @ (value + noise), **how)
        if self.first is None:
            self.first = output
        return output
