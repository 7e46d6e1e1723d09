"""Attention past one machine as targets of the conformance suite, such as

    ia-core conform benchmarks.scale_targets:dask_chunked --profile full

``dask_chunked`` and ``cubed_chunked`` split every axis that may be split: leading axes, heads, queries and keys.
``torch_ring`` runs on four processes. The targets of JAX have eight devices: the processor, taken for so many. For the
ring sizes that eight does not divide are filled up with keys behind a mask and queries that are cut off; for heads
every key head with its group is there so many times that eight divides their number, and one copy of each is judged.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ia_core import BoxMLP, PositionBias
from ia_core._checks import check_call
from ia_core._positions import Grid
from ia_core.backends import indirect_attention, use_backend
from ia_core.backends._chunked import HEAD_AXES
from ia_core.conformance import Implementation

__all__ = ["TARGETS"]

# Read when JAX starts, which it has not yet in the process of its own that a target is judged in.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
DEVICES = 8

DTYPES = ("float64", "float32", "float16", "bfloat16")
BASIC = {"bias", "bias_broadcast", "mask", "scale", "lse", "grouped", "value_width", "batch_axes", "empty"}
FORWARD = frozenset(BASIC | {"position_bias", "wide_bias", "errors"})
# Blocks along a leading axis, along queries, and along keys: enough for a tree that is deeper than one merge.
BATCH_BLOCKS, QUERY_BLOCKS, KEY_BLOCKS = 2, 2, 5
# Rows of a tile and fewest keys of a piece in the ring of JAX: small calls have several of them.
RING_ROWS, RING_KEYS = 2, 1


def in_chunks(
    give: Callable[[np.ndarray, tuple[int, ...]], Any], query: Any, key: Any, value: Any, bias: Any, mask: Any
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call in chunks, whatever is no array of NumPy as it is."""
    arrays = (query, key, value)
    if not all(isinstance(array, np.ndarray) and array.ndim == query.ndim >= 3 for array in arrays):
        return [_whole(give, array) for array in (query, key, value)], {
            "bias": _tree(bias, lambda array: _whole(give, array)),
            "mask": _whole(give, mask),
        }
    Hk = key.shape[-3]
    group = query.shape[-3] // Hk if Hk else 1
    h, m, n = max(1, -(-Hk // 2)), _part(query.shape[-2], QUERY_BLOCKS), _part(key.shape[-2], KEY_BLOCKS)
    batch = tuple(_part(size, BATCH_BLOCKS) for size in query.shape[:-3])
    scores = (*batch, h * max(1, group), m, n)

    def over_scores(array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        chunks = scores[max(0, len(scores) - array.ndim) :]
        return (
            give(array, tuple(min(a, max(1, b)) for a, b in zip(array.shape, chunks, strict=True)))
            if (len(chunks) == array.ndim)
            else _whole(give, array)
        )

    def sequence(array: Any, size: int, rank: int) -> Any:
        leading = batch[len(batch) - array.ndim + rank :]
        leading = tuple(min(a, max(1, b)) for a, b in zip(array.shape, leading, strict=False))
        return give(array, (*leading, size, *array.shape[array.ndim - rank + 1 :]))

    if isinstance(bias, PositionBias):
        f = _tree(bias.f, lambda array: _whole(give, array))
        of_values = bias.value_positions
        of_values = (
            _tree(of_values, lambda array: _whole(give, array))
            if isinstance(of_values, tuple)
            else (sequence(of_values, n, 1))
        )
        bias = PositionBias(f, sequence(bias.query_positions, m, bias.f.query_rank), of_values)
    else:
        bias = over_scores(bias)
    arrays = [
        give(array, (*batch, heads, size, max(1, array.shape[-1])))
        for array, heads, size in ((query, h * max(1, group), m), (key, h, n), (value, h, n))
    ]
    return arrays, {"bias": bias, "mask": over_scores(mask)}


def _part(size: int, blocks: int) -> int:
    return max(1, -(-size // blocks))


def _tree(tree: Any, of_leaf: Callable[[Any], Any]) -> Any:
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_tree(part, of_leaf) for part in tree))
    return of_leaf(tree)


def _whole(give: Callable[[np.ndarray, tuple[int, ...]], Any], array: Any) -> Any:
    return give(array, tuple(max(1, size) for size in array.shape)) if isinstance(array, np.ndarray) else array


def _dask(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    dask = importlib.import_module("dask")
    give = importlib.import_module("dask.array").from_array
    arrays, keywords = in_chunks(give, query, key, value, bias, mask)
    found = indirect_attention(*arrays, **keywords, scale=scale, return_lse=return_lse)
    return dask.compute(*found) if return_lse else found.compute()


def _cubed(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    cubed = importlib.import_module("cubed")
    spec = cubed.Spec(allowed_mem="500MB", executor_name="threads")

    def give(array: np.ndarray, chunks: tuple[int, ...]) -> Any:
        return cubed.from_array(array, chunks=chunks, spec=spec)

    arrays, keywords = in_chunks(give, query, key, value, bias, mask)
    found = indirect_attention(*arrays, **keywords, scale=scale, return_lse=return_lse)
    return tuple(cubed.compute(*found)) if return_lse else found.compute()


def _mesh(devices: int) -> tuple[Any, Any]:
    jax = importlib.import_module("jax")
    sharding = jax.sharding
    mesh = jax.make_mesh(
        (devices,), ("devices",), axis_types=(sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return mesh, lambda *spec: sharding.NamedSharding(mesh, sharding.PartitionSpec(*spec))


def _filled(array: Any, axis: int, more: int, value: Any = 0) -> Any:
    """An array with some more entries at the end of an axis."""
    jnp = importlib.import_module("jax.numpy")
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, more)
    return jnp.pad(array, widths, constant_values=value)


def _filled_bias(bias: Any, call: Any, rows: int, columns: int) -> Any:
    if not isinstance(bias, PositionBias):
        return _filled_over_scores(bias, call, rows, columns, 0)
    where, values = bias.query_positions, bias.value_positions
    where = _filled(where, where.ndim - bias.f.query_rank, rows)
    values = (
        Grid(x=values.x, y=_filled(values.y, 0, columns // max(1, values.x.shape[0])))
        if (isinstance(values, Grid))
        else _filled(values, values.ndim - 1, columns)
    )
    return PositionBias(bias.f, where, values)


def _filled_over_scores(array: Any, call: Any, rows: int, columns: int, value: Any) -> Any:
    if array is None:
        return None
    for axis, size, more in ((-2, call.M, rows), (-1, call.N, columns)):
        if array.ndim >= -axis and array.shape[axis] == size != 1:
            array = _filled(array, array.ndim + axis, more, value)
    return array


def _jax_ring(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    jax_ring, parts = (importlib.import_module(f"ia_core.backends.{name}") for name in ("jax_ring", "_jax_parts"))
    jax_ring.TILE_ROWS, parts.LEAST_KEYS = RING_ROWS, RING_KEYS
    jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")
    call = check_call(query, key, value, bias, mask, scale)
    mesh, sharding = _mesh(DEVICES)
    rows, columns = -call.M % DEVICES, -call.N % DEVICES
    if isinstance(bias, PositionBias) and isinstance(bias.value_positions, Grid):
        columns = -bias.value_positions.y.shape[0] % DEVICES * bias.value_positions.x.shape[0]
    if columns:
        mask = jnp.ones((1, 1), bool) if mask is None else mask
        mask = jnp.broadcast_to(mask, (*mask.shape[:-1], call.N)) if mask.ndim else jnp.broadcast_to(mask, (call.N,))
        mask = _filled(_filled_over_scores(mask, call, rows, 0, False), mask.ndim - 1, columns, False)
    else:
        mask = _filled_over_scores(mask, call, rows, 0, False)
    bias = _filled_bias(bias, call, rows, columns)
    q, (k, v) = _filled(query, query.ndim - 2, rows), (_filled(one, key.ndim - 2, columns) for one in (key, value))
    q, k, v, bias, mask = jax.device_put((q, k, v, bias, mask), sharding())
    output, lse = jax_ring.ring_attention(
        q, k, v, bias=bias, mask=mask, scale=call.scale, mesh=mesh, axis="devices", return_lse=True
    )
    output, lse = output[..., : call.M, :], lse[..., : call.M]
    return (output, lse) if return_lse else output


def _jax_heads(
    query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None, return_lse: bool = False
) -> Any:
    jax = importlib.import_module("jax")
    call = check_call(query, key, value, bias, mask, scale)
    copies = DEVICES // math.gcd(call.Hk, DEVICES)
    sharding = _mesh(DEVICES)[1]

    def spread(array: Any, axis: int | None) -> Any:
        """Copies of an array behind each other along the axis that counts heads, split there."""
        if axis is None:
            return jax.device_put(array, sharding())
        axis %= array.ndim
        repeated = jax.numpy.concatenate([array] * copies, axis=axis)
        return jax.device_put(repeated, sharding(*(None,) * axis, "devices"))

    def of_function(f: Any) -> Any:
        if isinstance(f, BoxMLP):
            return BoxMLP(of_function(f.x), of_function(f.y))
        axes = HEAD_AXES[type(f)] if call.H == bias.f.heads > 1 else {}
        return type(f)(*(spread(array, axes.get(name)) for name, array in zip(f._fields, f, strict=True)))

    def of_scores(array: Any) -> Any:
        counts = array is not None and array.ndim > 2 and array.shape[-3] == call.H > 1
        return spread(array, -3 if counts else None)

    if isinstance(bias, PositionBias):
        places = jax.device_put((bias.query_positions, bias.value_positions), sharding())
        bias = PositionBias(of_function(bias.f), *places)
    else:
        bias = of_scores(bias)
    query, key, value = (spread(array, -3) for array in (query, key, value))
    with use_backend("jax-jit"):
        output, lse = indirect_attention(
            query, key, value, bias=bias, mask=of_scores(mask), scale=call.scale, return_lse=True
        )
    # One copy is returned, so that the others have cotangents of zero and add nothing to a gradient. Which one differs
    # from call to call: no device's results go unseen.
    first = (call.M + call.N) % copies * call.H
    output, lse = output[..., first : first + call.H, :, :], lse[..., first : first + call.H, :]
    return (output, lse) if return_lse else output


def _torch_ring(*arrays: Any, **keywords: Any) -> Any:
    from benchmarks.scale_torch import ring_of_four

    return ring_of_four(*arrays, **keywords)


DERIVATIVES = {"grad", "bias_grad", "parameter_grad", "lse_grad"}
TARGETS = {
    "jax_ring": Implementation(
        _jax_ring, "jax-ring", library="jax", dtypes=DTYPES, supports=FORWARD | DERIVATIVES | {"compile"}
    ),
    "jax_heads": Implementation(
        _jax_heads,
        "jax-heads",
        library="jax",
        dtypes=DTYPES,
        supports=FORWARD | DERIVATIVES | {"double_grad", "compile"},
    ),
    "torch_ring": Implementation(
        _torch_ring, "torch-ring", library="torch", dtypes=DTYPES, supports=FORWARD | DERIVATIVES, most_cases=40
    ),
    "dask_chunked": Implementation(_dask, "dask-chunked", dtypes=DTYPES, supports=FORWARD),
    # Empty arrays have no blocks in Cubed, and its arrays have no halves beyond float32.
    "cubed_chunked": Implementation(
        _cubed, "cubed-chunked", dtypes=DTYPES[:2], supports=FORWARD - {"empty"}, most_cases=8
    ),
}


def __getattr__(name: str) -> Implementation:
    """A target, if its engine is installed: each clause would fail of one that is not."""
    if name not in TARGETS:
        raise AttributeError(name)
    engine = name.partition("_")[0]
    if importlib.util.find_spec(engine) is None:
        raise ImportError(f"{name} needs the extra: pip install 'indirect-attention[{engine}]'")
    return TARGETS[name]
