"""Half precision, and small errors in any."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from ._base import Attention, Call, Tiled
from ._mutant import DTYPES, after, before, step

__all__: list[str] = []

HALVES = ("float16", "bfloat16")
WIDE = ("float64", "float32")


def _half(call: Call) -> bool:
    return bool(call.query.dtype.itemsize == 2)


def _through(array: Any, dtype: Any) -> Any:
    """Rounded to a dtype."""
    return array.astype(dtype).astype(array.dtype)


def _bits(array: Any, bits: int) -> Any:
    """float32 cut to so many bits of the mantissa."""
    return (array.view(np.uint32) & np.uint32(0xFFFFFFFF << (23 - bits) & 0xFFFFFFFF)).view(np.float32)


@step("precision", "work", "IA-P-03", "IA-P-04", dtypes=DTYPES)
def half_accumulation(self: Attention, call: Call) -> Any:
    """Halves are computed in halves, sums included."""
    return call.query.dtype


@step("precision", "total", "IA-P-03", dtypes=HALVES)
def denominator_in_float16(self: Attention, call: Call, e: Any) -> Any:
    """The denominator is summed in float16, which stops at 2048."""
    e16 = e.astype(np.float16)
    return np.add.accumulate(e16, axis=-1)[..., -1:].astype(e.dtype) if call.N else e.sum(axis=-1, keepdims=True)


@step("precision", "total", "IA-P-04", dtypes=HALVES)
def denominator_in_bfloat16(self: Attention, call: Call, e: Any) -> Any:
    """The denominator of bfloat16 inputs is summed in bfloat16 by pieces of 128 keys."""
    if call.query.dtype != ml_dtypes.bfloat16 or not call.N:
        return np.sum(e, axis=-1, keepdims=True)
    sums = np.add.reduceat(e, np.arange(0, call.N, 128), axis=-1)
    total = _through(sums[..., :1], ml_dtypes.bfloat16)
    for n in range(1, sums.shape[-1]):
        total = _through(total + sums[..., n : n + 1], ml_dtypes.bfloat16)
    return total


@step("precision", "weights", "IA-P-03", "IA-P-04", dtypes=HALVES)
def weights_rounded(self: Attention, call: Call, e: Any, total: Any) -> Any:
    """The weights are rounded to halves before they meet the values."""
    return _through(Attention.weights(self, call, e, total), call.query.dtype)


@step("precision", "exps", "IA-P-03", "IA-P-04", dtypes=HALVES)
def exponentials_rounded(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """The exponentials are rounded to halves, for the values and for the denominator."""
    return _through(np.exp(s - top), call.query.dtype)


@step("precision", "add", "IA-P-03", "IA-P-04", dtypes=HALVES)
def scores_rounded(self: Attention, call: Call, factor: Any, products: Any, bias: Any) -> Any:
    """The scores are rounded to halves."""
    return _through(Attention.add(self, call, factor, products, bias), call.query.dtype)


@step("precision", "products", "IA-P-03", "IA-P-08", dtypes=("float16",))
def products_in_float16(self: Attention, call: Call, q: Any, k: Any) -> Any:
    """The products are stored in float16 before the scale: beyond 65504 they are inf."""
    return _through(Attention.products(self, call, q, k), np.float16)


@before("precision", "IA-P-03", "IA-P-04", dtypes=HALVES)
def scaled_query_rounded(call: Call) -> None:
    """The query is scaled first, and rounded to halves again."""
    factor = 1 / math.sqrt(call.D) if call.scale is None else call.scale
    call.query = (call.query.astype(np.float32) * np.float32(factor)).astype(call.query.dtype)
    call.scale = 1.0


class _Pieces(Tiled):
    tile = 16


@step("precision", "add_output", "IA-P-03", "IA-P-04", base=_Pieces, dtypes=HALVES)
def accumulator_in_half(self: Tiled, call: Call, output: Any, keep: Any, e: Any, v: Any) -> Any:
    """Between tiles of 16 keys the accumulator is stored in halves."""
    return _through(output * keep + np.matmul(e, v), call.query.dtype)


@after("precision", "IA-P-03", dtypes=("float16",))
def output_rounded_twice(call: Call, output: Any, lse: Any) -> Any:
    """The output goes through bfloat16 on its way to float16."""
    return _through(output, ml_dtypes.bfloat16)


@step("precision", "rounded", "IA-P-03", "IA-P-04", dtypes=HALVES)
def output_cut_not_rounded(self: Attention, call: Call, output: Any) -> Any:
    """The output is cut to halves, not rounded to nearest."""
    nearest = output.astype(call.query.dtype)
    wide = nearest.astype(output.dtype)
    step_back = np.nextafter(nearest, np.zeros((), nearest.dtype))
    return np.where(np.abs(wide) > np.abs(output), step_back, nearest)


@step("precision", "work", "IA-P-01", dtypes=WIDE)
def float64_in_float32(self: Attention, call: Call) -> Any:
    """float64 is computed in float32."""
    return np.dtype(np.float32)


@step("precision", "exps", "IA-P-01", dtypes=WIDE)
def exponential_of_float64_in_float32(self: Attention, call: Call, s: Any, top: Any) -> Any:
    """The exponential alone is one of float32."""
    return np.exp((s - top).astype(np.float32)).astype(s.dtype)


@step("precision", "products", "IA-P-02", dtypes=("float32",))
def products_in_tf32(self: Attention, call: Call, q: Any, k: Any) -> Any:
    """float32 products have inputs of 10 bits."""
    return np.matmul(_bits(np.ascontiguousarray(q), 10), np.swapaxes(_bits(np.ascontiguousarray(k), 10), -1, -2))


@step("precision", "combine", "IA-P-02", dtypes=("float32",))
def values_in_tf32(self: Attention, call: Call, weights: Any, v: Any) -> Any:
    """The second product of float32 has inputs of 10 bits."""
    return np.matmul(_bits(np.ascontiguousarray(weights), 10), _bits(np.ascontiguousarray(v), 10))


@step("precision", "products", "IA-P-02", dtypes=("float32",))
def products_in_bfloat16(self: Attention, call: Call, q: Any, k: Any) -> Any:
    """float32 products have inputs in bfloat16."""
    return Attention.products(self, call, _through(q, ml_dtypes.bfloat16), _through(k, ml_dtypes.bfloat16))


@step("precision", "products", "IA-P-02", dtypes=("float32",))
def products_in_three_bfloat16(self: Attention, call: Call, q: Any, k: Any) -> Any:
    """float32 products of two parts in bfloat16 each, without the last term: 16 bits."""
    q1, k1 = _through(q, ml_dtypes.bfloat16), _through(k, ml_dtypes.bfloat16)
    q2, k2 = _through(q - q1, ml_dtypes.bfloat16), _through(k - k1, ml_dtypes.bfloat16)
    return sum(Attention.products(self, call, a, b) for a, b in ((q1, k1), (q1, k2), (q2, k1)))


@after("precision", "IA-F-01", "IA-P-02", dtypes=("float32",))
def error_of_1e_3(call: Call, output: Any, lse: Any) -> Any:
    """Every output of float32 is too large by a thousandth."""
    return output * output.dtype.type(1.001)


@after("precision", "IA-F-01", "IA-P-02", dtypes=("float32",))
def error_of_1e_5(call: Call, output: Any, lse: Any) -> Any:
    """Every output of float32 is too large by 1e-5."""
    return output * output.dtype.type(1.00001)


@after("precision", "IA-P-01", dtypes=("float64",))
def error_of_1e_12(call: Call, output: Any, lse: Any) -> Any:
    """Every output of float64 is too large by 1e-12."""
    return output * (1 + 1e-12)


@after("precision", "IA-F-01", "IA-P-02", dtypes=("float32",))
def one_row_off_by_0_0089(call: Call, output: Any, lse: Any) -> Any:
    """The last row is off by 0.0089."""
    return output + np.where(np.arange(call.M)[:, None] == call.M - 1, output.dtype.type(0.0089), output.dtype.type(0))


@before("precision", "IA-P-05", dtypes=("float32", "float64"))
def keys_beyond_4000_lost(call: Call) -> None:
    """Rows of more than 4000 keys lose the rest."""
    if call.N > 4000:
        for name in ("mask", "bias"):
            array = getattr(call, name)
            if isinstance(array, np.ndarray) and array.shape[-1] == call.N:
                setattr(call, name, array[..., :4000])
        call.key, call.value = call.key[..., :4000, :], call.value[..., :4000, :]
