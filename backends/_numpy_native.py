"""NumPy: the compiled kernel, which evaluates a position bias inside the block of scores it is added to.

A bias that is no function of one offset is given to it as a matrix, for one tile of queries at a time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy

from .._arrays import widen
from .._attention import dense_bias, prepare
from .._checks import Call
from .._position_bias import PositionBias
from .._positions import is_integer
from . import _native, _numpy
from ._compiled_bias import has_lines, lines_of, positions_near_zero
from ._numpy import LEAST_ROWS, SCORES_PER_TILE
from ._tiled import rows_within, slab, tiles

__all__ = ["attend", "declines"]


def declines(call: Call, arrays: dict[str, Any], return_lse: bool) -> str | None:
    """Why this path does not take the call, or None."""
    return _numpy.declines(call, arrays, return_lse) or _native.why_not()


def attend(call: Call, query: Any, key: Any, value: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    """Output and lse of a checked call, in the working dtype."""
    # Grouped heads are read in place, unless what a mask hides from one of them another may see.
    q, k, v = widen(query), widen(key), widen(value)
    if mask is not None:
        q, k, v, mask = prepare(call, query, key, value, mask)
    # What has to be made, as a matrix or in the working dtype, is made for a tile.
    if bias is None or has_lines(bias) or (not isinstance(bias, PositionBias) and bias.dtype == q.dtype):
        return _kernel(call, q, k, v, bias, mask)
    outputs, lses = [], []
    for i0, i1 in tiles(call.M, rows_within(call, SCORES_PER_TILE, LEAST_ROWS)):
        tile, dense = call._replace(M=i1 - i0), dense_bias(slab(bias, i0, i1))
        output, lse = _kernel(tile, q[..., i0:i1, :], k, v, dense, slab(mask, i0, i1))
        outputs.append(output)
        lses.append(lse)
    return numpy.concatenate(outputs, axis=-2), numpy.concatenate(lses, axis=-1)


def _kernel(call: Call, q: Any, k: Any, v: Any, bias: Any, mask: Any) -> tuple[Any, Any]:
    B, dtype = math.prod(call.batch), q.dtype.newbyteorder("=")
    rows = [_rows(array.reshape(B, *array.shape[-3:]), dtype) for array in (q, k, v)]
    scores = {} if mask is None else {"mask": _over_scores(call, mask)}
    lines = _lines(call, bias)
    if bias is not None and lines is None:
        scores["bias"] = _over_scores(call, numpy.asarray(bias, dtype=dtype))
    whole = lines is not None and is_integer(bias.value_positions)
    numbers = {"scale": call.scale, "whole_positions": whole, "threads": _native.threads()}
    described = _native.describe(_look, rows, lines, scores, **numbers)
    output = numpy.empty((B, call.H, call.M, v.shape[-1]), dtype)
    lse, top, total = numpy.empty((3, B, call.H, call.M), dtype)
    for name, array in (("output", output), ("lse", lse), ("top", top), ("total", total)):
        setattr(described, name, array.ctypes.data)
    _native.call_native(described, "double" if dtype == numpy.float64 else "float", backward=False)
    shape = call.scores_shape[:-1]
    return output.reshape(*shape, v.shape[-1]), lse.reshape(shape)


def _lines(call: Call, bias: Any) -> list[Any] | None:
    """Knots (K,), slopes and intercepts (H, 2 K + 1), and positions (B, M) and (B, N); None without a function."""
    if not has_lines(bias):
        return None
    g = lines_of(bias)
    shape = (call.H, 2 * g.knots.shape[0] + 1)
    tables = [numpy.broadcast_to(table.T, shape) for table in (g.slopes, g.intercepts)]
    places = [
        numpy.broadcast_to(at, (*call.batch, at.shape[-1])).reshape(math.prod(call.batch), at.shape[-1])
        for at in positions_near_zero(bias)
    ]
    return [numpy.require(array, numpy.float64, ["C", "A"]) for array in (g.knots, *tables, *places)]


def _rows(array: Any, dtype: Any) -> Any:
    """The array itself if the kernel can read it where it is, else a copy."""
    itself = array.flags.aligned and array.dtype == dtype and array.shape[-1] > 0
    steps = all(stride % array.itemsize == 0 for stride in array.strides)
    if itself and steps and array.strides[-1] == array.itemsize:
        return array
    return numpy.require(array, dtype, ["C", "A"])


def _over_scores(call: Call, array: Any) -> Any:
    """(B, H, M, N), of which no more is copied than the leading axes and the strides ask for."""
    own = (1,) * (len(call.scores_shape) - array.ndim) + array.shape
    leading = call.batch if math.prod(own[:-3]) != 1 else ()
    array = array.reshape(own) if leading else array.reshape(own[-3:])
    array = numpy.broadcast_to(array, (*leading, *own[-3:])).reshape(math.prod(leading), *own[-3:])
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides):
        array = numpy.require(array, None, ["C", "A"])
    return numpy.broadcast_to(array, (math.prod(call.batch), *call.scores_shape[-3:]))


def _look(array: Any) -> tuple[int, list[int]]:
    return array.ctypes.data, [stride // array.itemsize for stride in array.strides]
