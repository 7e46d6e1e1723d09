"""MLX: ``mlx.core.fast.scaled_dot_product_attention`` on the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._implementation import Implementation
from .._libraries import numpy_dtype
from ._joined import joined

__all__ = ["FACTORIES", "NEEDS", "attention"]

MEAN = "a row that the mask empties gives the mean of the values: forbidden scores are the least finite number"
ROUNDED = "scores and weights are rounded to a half: on the CPU it is composed of operations on halves"
DEVIATIONS = {
    "IA-G-04": f"{MEAN}, and the gradient flows to them",
    "IA-G-11": "nan behind the mask reaches gradients: it is multiplied by the weight of 0, and 0 * nan is nan",
    "IA-P-01": "the softmax of float64 is in float32",
    "IA-P-03": ROUNDED,
    "IA-P-04": ROUNDED,
    "IA-S-01": MEAN,
    "IA-S-02": "a row whose bias is -inf everywhere gives nan: its softmax is 0 / 0",
    "IA-S-13": "no heads end the process with SIGFPE: the number of query heads is divided by that of key heads",
    "IA-S-06": "nan behind the mask reaches the output: its weight is 0, and 0 * nan is nan",
}


def attention() -> Implementation:
    """MLX has no NumPy of its own here: arrays are copied in and out. float64 exists on the CPU alone."""
    return Implementation(
        _attention,
        "mlx",
        dtypes=("float32", "float64", "float16", "bfloat16"),
        supports={"bias", "bias_broadcast", "mask", "scale", "grouped", "value_width", "empty", "grad", "bias_grad"},
        arithmetic={"float64": "float32", "float16": "scores", "bfloat16": "scores"},
        deviations={label: f"{reason} (seen in MLX 0.32)" for label, reason in DEVIATIONS.items()},
        vjp=_vjp,
    )


FACTORIES = {"mlx": attention}
NEEDS = {"mlx": ("mlx",)}


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, **keywords: Any) -> np.ndarray:
    return _received(_call(*(_placed(one) for one in (query, key, value)), **_keywords(**keywords)))


def _vjp(
    cotangent: np.ndarray, query: np.ndarray, key: np.ndarray, value: np.ndarray, **keywords: Any
) -> list[np.ndarray]:
    import mlx.core as mx

    arrays = [_placed(one) for one in (query, key, value)]
    placed = _keywords(**keywords)
    bias, mask = keywords.get("bias"), keywords.get("mask")
    if bias is None:
        _, found = mx.vjp(lambda *given: _call(*given, **placed), arrays, [_placed(cotangent)])
        return [_received(one) for one in found]

    def function(query: Any, key: Any, value: Any, bias: Any) -> Any:
        both = bias if mask is None else mx.where(mx.array(mask), bias, mx.array(-math.inf, bias.dtype))
        return _call(query, key, value, mask=both, scale=placed["scale"])

    _, found = mx.vjp(function, [*arrays, _placed(bias)], [_placed(cotangent)])
    return [_received(one) for one in found]


def _keywords(bias: Any = None, mask: Any = None, scale: float | None = None) -> dict[str, Any]:
    both = joined(bias, mask, boolean=True)
    return {"mask": None if both is None else _placed(both), "scale": scale}


def _call(query: Any, key: Any, value: Any, *, mask: Any, scale: float | None) -> Any:
    import mlx.core as mx

    # MLX has no default scale.
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask, stream=mx.cpu)


def _placed(array: np.ndarray) -> Any:
    import mlx.core as mx

    array = np.array(array, order="C")  # MLX copies too, but refuses negative strides
    with mx.stream(mx.cpu):
        if array.dtype.name == "bfloat16":  # unknown to the buffer protocol; float32 holds it exactly
            return mx.array(array.astype(np.float32)).astype(mx.bfloat16)
        return mx.array(array, dtype=mx.float64) if array.dtype == np.float64 else mx.array(array)


def _received(array: Any) -> np.ndarray:
    import mlx.core as mx

    name = str(array.dtype).removeprefix("mlx.core.")
    with mx.stream(mx.cpu):
        return np.array(array.astype(mx.float32) if name == "bfloat16" else array).astype(numpy_dtype(name))
