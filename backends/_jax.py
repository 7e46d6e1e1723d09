"""JAX: one compiled computation over query tiles.

``jax.lax.map`` runs the tiles one after another, and ``jax.checkpoint`` computes a tile's scores anew for its
gradient: neither direction holds an M x N matrix. (Tiles in a Python loop do: XLA keeps them all.)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .. import _attention
from .._attention import prepare, scores, softmax
from .._checks import Call, check_call
from .._position_bias import PositionBias
from ._compiled_bias import network_as_lines

__all__ = ["LEAST_HIDDEN", "TILE_ROWS", "attend", "declines", "over_tiles", "rows_of"]

# Measured on two cores, float32, N from 1024 to 4096, with and without a bias of 16 hidden units, forward and
# backward: 128 is the fastest or within a tenth of it, and 64 and 256 are close.
TILE_ROWS = 128
# Measured likewise at N of 1024: a network of 16 hidden units is faster as it is (0.8 of the time), one of 64
# slower (1.2).
LEAST_HIDDEN = 64


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call: it takes them all."""
    return None


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    return _compiled(query, key, value, bias, mask, scale=call.scale, rows=TILE_ROWS)


@functools.partial(jax.jit, static_argnames=("scale", "rows"))
def _compiled(query: Any, key: Any, value: Any, bias: Any, mask: Any, *, scale: float, rows: int) -> tuple[Any, Any]:
    call = check_call(query, key, value, bias, mask, scale)
    # The devices' default multiplies float32 in fewer bits.
    with jax.default_matmul_precision("highest"):
        if call.M <= rows:
            return _attention.attend(call, query, key, value, bias, mask)
        return _attend_tiles(call, query, key, value, bias, mask, rows)


def _attend_tiles(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any, rows: int) -> tuple[Any, Any]:
    bias = network_as_lines(bias, LEAST_HIDDEN)
    v: Any
    q, k, v, mask = prepare(call, query, key, value, mask)

    @functools.partial(jax.checkpoint, static_argnums=1)
    def tile(i0: Any, size: int) -> tuple[Any, Any]:
        its_call = call._replace(M=size)
        q_tile = jax.lax.dynamic_slice_in_dim(q, i0, size, axis=-2)
        s = scores(its_call, q_tile, k, rows_of(bias, i0, size), rows_of(mask, i0, size))
        weights, lse = softmax(its_call, s)
        return jnp.matmul(weights, v), lse

    output, lse = over_tiles(tile, call.M, rows, (-2, -1))
    return output, lse


def over_tiles(tile: Any, M: int, rows: int, axes: tuple[int, ...]) -> tuple[Any, ...]:
    """What ``tile(first row, rows)`` gives for M queries, joined; ``axes`` are those of the queries in each result."""
    if M <= rows:
        return tuple(tile(0, M))
    whole = M // rows
    parts = jax.lax.map(lambda i: tile(i * rows, rows), jnp.arange(whole))
    joined = [_join(part, axis) for part, axis in zip(parts, axes, strict=True)]  # (tiles, ..., rows) to (..., M)
    if M == whole * rows:
        return tuple(joined)
    rest = tile(whole * rows, M - whole * rows)
    return tuple(jnp.concatenate(both, axis=axis) for *both, axis in zip(joined, rest, axes, strict=True))


def rows_of(array: Any, i0: Any, size: int) -> Any:
    """Rows i0 .. i0 + size - 1, i0 traced, of what broadcasts to (..., H, M, N)."""
    if array is None or len(array.shape) < 2 or array.shape[-2] == 1:
        return array
    if isinstance(array, PositionBias):
        positions = array.query_positions
        axis = positions.ndim - array.f.query_rank
        return array._replace(query_positions=jax.lax.dynamic_slice_in_dim(positions, i0, size, axis=axis))
    return jax.lax.dynamic_slice_in_dim(array, i0, size, axis=array.ndim - 2)


def _join(parts: Any, axis: int) -> Any:
    parts = jnp.moveaxis(parts, 0, axis - 1)
    shape = parts.shape
    split = len(shape) + axis - 1
    return parts.reshape(*shape[:split], shape[split] * shape[split + 1], *shape[split + 2 :])
